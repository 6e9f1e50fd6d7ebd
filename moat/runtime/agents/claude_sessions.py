"""Where Claude Code keeps conversations, on the host and in a sandbox.

One directory per project, named after its path. The sandbox's project is always `/workspace`; mounting
the host's directory of the real path there makes every conversation continue on either side.
The sandbox can write to that directory: names in it are data, links are not followed.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from moat.errors import StartError
from moat.runtime.records import RunRecord
from moat.runtime.sandbox import HOME, WORKSPACE

_LONGEST = 200  # characters of a directory name before it is shortened
_SESSION = re.compile(r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\.jsonl")


def slug(path: str) -> str:
    """The directory name of the project at `path`, which must be resolved.

    Claude Code's own rule (2.1.330): every UTF-16 unit that is no ASCII letter or digit becomes `-`;
    beyond 200 the rest is replaced by a 32-bit hash in base 36.
    """
    data = path.encode("utf-16-le", "surrogatepass")
    units = [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]
    name = "".join(chr(unit) if unit < 128 and chr(unit).isalnum() else "-" for unit in units)
    if len(name) <= _LONGEST:
        return name
    value = 0
    for unit in units:
        value = (value * 31 + unit) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >> 31 else value
    return f"{name[:_LONGEST]}-{_base36(abs(signed))}"


SANDBOX_PROJECT = f"{HOME}/.claude/projects/{slug(WORKSPACE)}"


def host_directory(home: Path, workspace: Path) -> Path:
    """Where the conversations of `workspace` are on the host. It may not exist."""
    return home / ".claude" / "projects" / slug(str(workspace.resolve()))


def shared_directory(home: Path, workspace: Path) -> Path:
    """`host_directory`, created when it is missing (0700). Raises StartError when it cannot be shared."""
    directory = host_directory(home, workspace)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(
            f"conversations cannot be kept in {directory}: {error.strerror}",
            hint="make ~/.claude/projects a directory that you can write",
        ) from None
    return directory


def sessions(home: Path, workspace: Path) -> list[tuple[str, float]]:
    """UUID and time of the last change of every conversation of `workspace`, newest first."""
    found = []
    try:
        with os.scandir(host_directory(home, workspace)) as entries:
            for entry in entries:
                match = _SESSION.fullmatch(entry.name)
                if match and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                    found.append((match[1], entry.stat(follow_symlinks=False).st_mtime))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda item: item[1], reverse=True)


def conversation_of(home: Path, run: RunRecord) -> str | None:
    """The conversation of a run, kept below the user's directory `home`; None when it left none."""
    if run.agent != "claude":
        return None
    return session_of_run(
        run.argv,
        sessions(home, Path(run.workspace)),
        started_at=run.started_at or run.created_at,
        ended_at=run.ended_at,
    )


def session_of_run(
    argv: tuple[str, ...], known: list[tuple[str, float]], *, started_at: float, ended_at: float | None
) -> str | None:
    """The conversation of a run with `argv`, or None when it had none.

    A run says in its arguments which conversation it has; `--continue` does not, there the newest one
    that was written while the run lived is meant.
    """
    ids = {session for session, _ in known}
    for flag in ("--resume", "--session-id"):
        if flag in argv[:-1]:
            named = argv[argv.index(flag) + 1]
            return named if named in ids else None
    for session, changed in known:
        if started_at <= changed and (ended_at is None or changed <= ended_at + 1):
            return session
    return None


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits or "0"
