"""Why a run may have failed: credentials that were refused or could not be had, and what helps."""

from __future__ import annotations

from moat.cli.common import use_profile
from moat.cli.output import safe, say
from moat.dataclass import dataclass
from moat.journal import keeping, read_lines
from moat.journal.entry import entries
from moat.paths import Home
from moat.runtime.records import RunRecord
from moat.runtime.rejected import fix, refused, withheld
from moat.vault import open_vault


@dataclass(frozen=True, slots=True)
class Trouble:
    grant: str
    text: str
    fix: str  # a command

    def to_json(self) -> dict[str, str]:
        return {"grant": self.grant, "problem": self.text, "fix": self.fix}


def troubles(home: Home, record: RunRecord) -> tuple[Trouble, ...]:
    """One for each credential and host, by grant; none of a run that ended well."""
    if not record.grants or record.exit_code == 0:
        return ()
    directory = home.run(record.id)
    told = []
    for (grant, host, status), count in refused(read_lines(directory / "network.jsonl")).items():
        times = "a request" if count == 1 else f"{count} requests"
        why = "it is not valid there" if status == 401 else "it may lack a permission"
        told.append((grant, f"{host} answered {status} to {times} with the credential {grant}: {why}"))
    for grant, error in withheld(entries(directory / keeping.FILE)).items():
        told.append((grant, f"the credential {grant} could not be had: {error}"))
    if not told:
        return ()
    use_profile(record.profile)  # the run's, whatever this shell has
    vault = open_vault(home)
    return tuple(Trouble(grant, text, fix(vault, grant)) for grant, text in sorted(told))


def tell_refused(home: Home, record: RunRecord) -> None:
    """A line for each on stderr, then the commands; nothing when there was none."""
    found = troubles(home, record)
    for trouble in found:
        say(safe(trouble.text))
    for command in dict.fromkeys(trouble.fix for trouble in found):
        say(f"hint: {command}")
