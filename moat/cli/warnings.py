"""What a run's network policy objected to and let through, told when the run has ended."""

from __future__ import annotations

from collections import Counter

from moat.cli.output import safe, say
from moat.journal import keeping
from moat.journal.entry import entries
from moat.paths import Home
from moat.runtime.records import RunRecord

_LINES = 10


def tell_warned(home: Home, record: RunRecord) -> None:
    """The requests by kind, the most frequent first; nothing when there were none."""
    if not record.warned:
        return
    kinds: Counter[tuple[str, str]] = Counter()
    for entry in entries(home.run(record.id) / keeping.FILE):
        if entry.event == "network.warned":
            get = entry.data.get
            kinds[f"{get('method')} {get('authority')}", str(get("rule"))] += int(get("count") or 0)
    requests = "1 request was" if record.warned == 1 else f"{record.warned} requests were"
    say(f"{requests} let through that the network policy objects to:")
    for (what, rule), count in kinds.most_common(_LINES):
        say(safe(f"  {count:>5}  {what}  ({rule})"))
    if len(kinds) > _LINES:
        say(f"         … and {len(kinds) - _LINES} other kinds")
    say(f"  moat trace --network {record.name}")
