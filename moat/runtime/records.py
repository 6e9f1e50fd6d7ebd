"""What is known of a run on disk: `runs/<id>/run.json`, and whether somebody still owns it.

Only the owner of a run (its supervisor, or the program that hosts it) writes the record, and it holds
`runs/<id>/lock` for as long as it lives. Readers never write. A record that says "alive" while nobody holds
the lock is a lost run: it is shown as that, and whoever clears up after it (`known.clear`) records it once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moat import paths
from moat.dataclass import dataclass
from moat.errors import RunNotFoundError, UsageError
from moat.paths import Home, private_dir, write_private
from moat.regex import regex

_ID = regex(r"run_[0-9a-f]{12}")
_YOUNG = 60.0  # seconds in which the owner of a new directory certainly writes its record
_NAME = regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class State(StrEnum):
    """Where a run is on its way."""

    CREATED = "created"  # the record exists, nothing else does
    STARTING = "starting"  # image, proxy and sandbox are being made
    RUNNING = "running"  # the command was started
    STOPPING = "stopping"  # it ended or was asked to; resources are being released
    STOPPED = "stopped"  # ended with status 0, or because somebody stopped it
    FAILED = "failed"  # ended otherwise, or never started; `error` says why
    LOST = "lost"  # its owner was killed; what became of the command is not known

    @property
    def ended(self) -> bool:
        """Whether nothing of the run goes on."""
        return self in {State.STOPPED, State.FAILED, State.LOST}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """`run.json`. Times are seconds since the epoch."""

    id: str
    name: str
    workspace: str
    argv: tuple[str, ...]
    created_at: float
    state: State = State.CREATED
    runtime: str = ""  # `docker`, `embedded`; empty until it was chosen
    grants: tuple[str, ...] = ()
    profile: str = ""  # of these credentials
    agent: str | None = None
    config: str | None = None  # digest of agent.yaml (`tampering`); "": there was none; None: not asked
    ports: Mapping[str, int] = field(default_factory=dict)  # endpoint -> port in the sandbox
    endpoints: Mapping[str, str] = field(default_factory=dict)  # endpoint -> URL, while the run is alive
    tty: bool = False
    pid: int = 0  # of the owner
    boot: str = ""  # which start of this machine the owner belongs to
    socket: str = ""  # control socket; empty when there is none
    directory: str = ""  # short private directory of sockets; empty once all of the run is released
    started_at: float | None = None  # of the command
    ended_at: float | None = None
    exit_code: int | None = None  # of the command; None: it never ended by itself
    error: str = ""  # why the run is `failed` or `lost`
    worktree: str | None = None  # the branch whose worktree is the workspace
    git_changes: tuple[str, ...] = ()  # what git on the host would obey and the run made or changed
    services_ended: tuple[str, ...] = ()  # before the run did: which, and how
    warned: int = 0  # exchanges that policy objects to and let through
    asks: tuple[str, ...] = ()  # hosts whose requests wait for the user's answer
    log_error: str = ""  # output.log could not be written: the log has a hole

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRecord:
        """Raises KeyError, TypeError or ValueError for what is not a record."""
        fields = {name: item for name, item in value.items() if name in _FIELDS}
        fields["state"] = State(fields["state"])
        for name in ("argv", "grants", "asks", "git_changes", "services_ended"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)


_FIELDS = frozenset(f.name for f in dataclasses.fields(RunRecord))


def new_id() -> str:
    return f"run_{os.urandom(6).hex()}"


def check_name(name: str) -> str:
    """Returns `name` when it is a lower-case DNS label; raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a run name",
            hint="use lower-case letters, digits and hyphens, at most 63, e.g. `feature-auth`",
        )
    return name


class Ownership:
    """The lock of one run. While the process lives and holds it, the run counts as alive."""

    def __init__(self, directory: Path) -> None:
        """Create the run's directory and take its lock. Raises OSError when somebody has it."""
        private_dir(directory)
        self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise

    def release(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def owned(directory: Path) -> bool:
    """Whether a living process owns the run. Looks only."""
    return paths.owned(directory / "lock")


def write(home: Home, record: RunRecord) -> None:
    """Replace the record; on a full disk the old one is written over, which needs no room. Raises OSError."""
    path = home.run(record.id) / "run.json"
    data = json.dumps(record.to_json(), indent=1).encode()
    try:
        write_private(path, data)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT} or not path.exists():
            raise
        _write_over(path, data)


def _write_over(path: Path, data: bytes) -> None:
    """In one piece, into the block that the file has: a reader sees the old record or the new one."""
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        padded = data.ljust(os.fstat(handle).st_size)  # never shorter: JSON may end with blanks
        if os.pwrite(handle, padded, 0) != len(padded):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    finally:
        os.close(handle)


def read(home: Home, run_id: str) -> RunRecord | None:
    """The record as it is on disk; None when there is none or it is not one."""
    return _read(f"{home.run(run_id)}/run.json")


def _read(path: str) -> RunRecord | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return RunRecord.from_json(json.loads(file.readall().decode()))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_all(home: Home) -> list[RunRecord]:
    """Every record, newest first. A thousand take 30 ms: paths are strings here for that."""
    place = str(home.runs)
    try:
        names = [name for name in os.listdir(place) if _ID.fullmatch(name)]
    except FileNotFoundError:
        return []
    found = [record for name in names if (record := _read(f"{place}/{name}/run.json")) is not None]
    return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)


def remnants(home: Home) -> list[str]:
    """Ids of directories without a record: their owners were killed before they could write one.

    Young ones are left out, for they may be about to be written.
    """
    try:
        names = [name for name in os.listdir(home.runs) if _ID.fullmatch(name)]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if _is_remnant(home.run(name)))


def _is_remnant(directory: Path) -> bool:
    try:
        old = time.time() - directory.stat().st_mtime > _YOUNG
    except FileNotFoundError:
        return False
    return old and not (directory / "run.json").exists() and not owned(directory)


def matching(runs: list[RunRecord], text: str) -> list[RunRecord]:
    """The runs that `text` may mean: by exact id, else id prefix, else exact name; never none.

    Of several runs with one name a single living one is meant. Raises RunNotFoundError.
    """
    exact = [run for run in runs if run.id == text]
    prefix = [run for run in runs if text.startswith("run_") and run.id.startswith(text)]
    named = [run for run in runs if run.name == text]
    alive = [run for run in named if not run.state.ended]
    for candidates in (exact, prefix, alive if len(alive) == 1 else named):
        if candidates:
            return candidates
    raise RunNotFoundError(f"no run {text!r}", hint=_meant(runs, text) or "`moat list` shows the runs")


def _meant(runs: list[RunRecord], text: str) -> str:
    from difflib import get_close_matches  # 4 ms, which only a mistake costs

    near = get_close_matches(text, {run.name for run in runs}, n=1, cutoff=0.75)
    return f"did you mean `{near[0]}`?" if near else ""


def pick(runs: list[RunRecord], text: str) -> RunRecord:
    """The one run that `text` means. Raises RunNotFoundError; AmbiguousRunError when there are several."""
    candidates = matching(runs, text)
    if len(candidates) > 1:
        raise AmbiguousRunError(repr(text), candidates)
    return candidates[0]


def find(home: Home, text: str) -> RunRecord:
    """`pick` among the records as they are on disk. Raises RunNotFoundError."""
    return pick(read_all(home), text)


class AmbiguousRunError(RunNotFoundError):
    """Several runs could be meant: `candidates`."""

    def __init__(self, what: str, candidates: list[RunRecord]) -> None:
        lines = [f"  {run.id}  {run.state}  {run.name}  {describe_age(run.created_at)}" for run in candidates]
        text = "\n".join([f"{what} means {len(candidates)} runs:", *lines])
        super().__init__(text, hint="use the run id")
        self.candidates = candidates


def lost(record: RunRecord) -> RunRecord:
    """What can be said of a run that its record calls alive and nobody owns."""
    restarted = record.boot not in {"", boot_id()}
    return dataclasses.replace(
        record,
        state=State.LOST,
        error="the machine was restarted" if restarted else "the supervisor was killed",
        pid=0,
        socket="",
        endpoints={},
        asks=(),
    )


def settle(home: Home, record: RunRecord) -> RunRecord:
    """Record a run whose owner died as lost. Returns the record as it is now.

    Several may come here at once: one of them writes.
    """
    try:
        with _alone(home.run(record.id)):
            current = read(home, record.id)
            if current is None or current.state.ended or owned(home.run(record.id)):
                return current or record
            dead = dataclasses.replace(lost(current), ended_at=time.time())
            write(home, dead)
    except FileNotFoundError:
        return record  # removed meanwhile
    return dead


def released(home: Home, record: RunRecord) -> RunRecord:
    """Record that nothing is left of a dead run but its record."""
    record = dataclasses.replace(record, directory="")
    with contextlib.suppress(FileNotFoundError), _alone(home.run(record.id)):
        if (home.run(record.id) / "run.json").exists():
            write(home, record)
    return record


def remove(home: Home, run_id: str) -> None:
    """Delete everything that is kept of a run; one that is gone is fine. Raises OSError when it stays."""
    import shutil  # with its compressors 5 ms, which those who only look need not pay

    directory = home.run(run_id)
    with contextlib.suppress(FileNotFoundError), _alone(directory):
        shutil.rmtree(directory, ignore_errors=True)  # its owner may be writing yet
        if directory.exists():
            shutil.rmtree(directory)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else settles or removes this run meanwhile; its owner is not asked. Raises FileNotFoundError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@functools.cache
def boot_id() -> str:
    """Which start of this machine it is; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def describe_age(since: float, now: float | None = None) -> str:
    """`12s`, `5m`, `3h`, `2d`."""
    seconds = max(0, int((time.time() if now is None else now) - since))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
