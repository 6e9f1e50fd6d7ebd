"""After a run that failed: which credentials their hosts refused, and the command that makes them anew."""

from __future__ import annotations

from moat.cli.output import safe, say
from moat.journal import read_lines
from moat.paths import Home
from moat.runtime.records import RunRecord
from moat.runtime.rejected import fix, refused
from moat.vault import open_vault


def tell_refused(home: Home, record: RunRecord) -> None:
    """A line for each credential and host, then the commands; nothing when there was none."""
    found = refused(read_lines(home.run(record.id) / "network.jsonl"))
    for (grant, host, status), count in sorted(found.items()):
        times = "a request" if count == 1 else f"{count} requests"
        why = "it is not valid there" if status == 401 else "it may lack a permission"
        say(safe(f"{host} answered {status} to {times} with the credential {grant}: {why}"))
    if found:
        vault = open_vault(home)
        for grant in sorted({grant for grant, _, _ in found}):
            say(f"hint: {fix(vault, grant)}")
