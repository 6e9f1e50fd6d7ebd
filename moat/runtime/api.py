"""Starting a run from a program, with the words a caller has at hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from moat.arguments import check, check_fields, check_range, listed, mapped
from moat.config import NetworkConfig, PluginsConfig, SnapshotConfig
from moat.config.network import ASK_AND_WARN
from moat.errors import ArgumentError
from moat.journal import keeping, verify
from moat.journal.entry import Entry, entries
from moat.journal.verify import Report
from moat.paths import Home
from moat.proxy.decider import Decider
from moat.runtime import known, records
from moat.runtime.hosting import Hosting
from moat.runtime.local_run import LocalRun
from moat.runtime.records import RunRecord
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import Mount, Progress
from moat.runtime.size import Size
from moat.runtime.words import words


def _silent(_: str) -> None:
    """Nobody wants to know what is being done."""


def start(
    argv: Sequence[str | os.PathLike[str]],
    *,
    workspace: str | os.PathLike[str] = ".",
    grants: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
    network: NetworkConfig | None = None,
    mounts: Iterable[Mount] = (),
    runtime: str | None = None,
    name: str | None = None,
    tty: Size | None = None,
    stdin: bool = False,
    ports: Mapping[str, int] | None = None,
    dependencies: Iterable[str] = (),
    base_image: str | None = None,
    snapshots: SnapshotConfig | None = None,
    plugins: PluginsConfig | None = None,
    home: Home | None = None,
    progress: Progress = _silent,
    decider: Decider | None = None,
) -> AbstractAsyncContextManager[LocalRun]:
    """Run `argv` in a sandbox on `workspace`, inside the caller's asyncio loop.

        async with moat.runtime.start(["npm", "test"], workspace="app", grants=["github"]) as run:
            async for chunk in run.output():
                sys.stdout.buffer.write(chunk.data)
            code = await run.wait()
            for exchange in run.exchanges():
                print(exchange.status, exchange.url)

    The proxy runs in this loop too, so the loop must not be blocked. Leaving the block ends the run and
    releases everything. The run is listed by `moat list`, and `moat attach`, `logs` and `stop` work on it.

    argv: the command and its arguments; no shell.
    network: policy and rules; permissive by default. `agent.yaml` is not read: `moat.config.load` does.
    tty: size of the terminal that the command gets; None: plain pipes, stdout and stderr apart.
    stdin: the command's stdin is a pipe for `run.write` and `run.close_stdin`; else it is empty.
    ports: endpoint -> port in the sandbox; `run.record.endpoints` has the URLs. The gateway that serves them
    is a process of its own.
    snapshots: when and of what snapshots are taken; None: never.
    decider: an async function that is asked about every request that `network` does not refuse; it has 30
    seconds, and whatever is not True refuses. With `policy="ask"` it decides what no rule does; without
    one, `run.questions()` and `run.answer()` do.
    plugins: what agent.yaml has as `claude.plugins` and `claude.marketplaces`, for a run of Claude Code. They
    are made ready before the command starts, with those of the user and of the project; None: no plugins.
    runtime: `docker` or `embedded`; None: as `moat run` chooses.

    Entering raises UsageError, GrantError (all missing grants at once), VaultError, StartError.
    """
    check("home", home, Home | None)
    check("progress", progress, Progress)
    check("decider", decider, Decider | None)
    request = RunRequest(
        argv=words(argv),
        workspace=_place("workspace", workspace).absolute(),
        grants=listed("grants", grants),
        env=mapped("env", {} if env is None else env),
        network=NetworkConfig() if network is None else network,
        mounts=_mounts(mounts),
        runtime=runtime,
        name=name,
        tty=tty,
        stdin=stdin,
        ports=mapped("ports", {} if ports is None else ports),
        dependencies=listed("dependencies", dependencies),
        base_image=base_image,
        snapshots=SnapshotConfig(disabled=True) if snapshots is None else snapshots,
        plugins=plugins,
    )
    check_fields(request)
    _check_values(request)
    place = home or Home.from_environment()
    return Hosting(lambda: LocalRun(request, place, decider), progress)


def _place(name: str, path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"{name} must be a path, not {type(path).__name__}")
    with contextlib.suppress(UnicodeEncodeError):  # half of a surrogate pair
        if b"\0" not in (name_on_disk := os.fsencode(path)):
            return Path(os.fsdecode(name_on_disk))
    raise ArgumentError(f"{name} must be a path, which has neither NUL nor half characters")


def _mounts(given: object) -> tuple[Mount, ...]:
    """As they are at this moment, whatever links lead there."""
    found = []
    for at, mount in enumerate(listed("mounts", given)):
        if not isinstance(mount, Mount):
            raise ArgumentError(f"mounts[{at}] must be a Mount, not {type(mount).__name__}")
        source = _place(f"mounts[{at}].source", mount.source)
        found.append(Mount.of(source, mount.target, read_only=mount.read_only))
    return tuple(found)


def _check_values(request: RunRequest) -> None:
    """What agent.yaml would be refused for. Raises ArgumentError."""
    for at, port in enumerate(request.network.host):
        check_range(f"network.host[{at}]", port, 1, 65535)
    if request.network.policy == "ask" and request.network.mode == "warn":
        raise ArgumentError(f"network: {ASK_AND_WARN}")
    check_range("snapshots.idle_seconds", request.snapshots.idle_seconds, 1, 86400)
    check_range("snapshots.max_count", request.snapshots.max_count, 1, 10_000)


def list_runs(*, home: Home | None = None) -> list[RunRecord]:
    """Every run that has not been removed, newest first, whoever started it."""
    check("home", home, Home | None)
    return known.all_runs(home or Home.from_environment())


def read_journal(run: str, *, home: Home | None = None) -> list[Entry]:
    """The entries of a run's journal, oldest first; `run` is a name or an id. Nothing is verified.

    Raises RunNotFoundError. A run that goes on has more every moment; a half line at the end is left out.
    """
    home, record = _found(run, home)
    return list(entries(home.run(record.id) / keeping.FILE))


def verify_journal(run: str, *, trusted: Iterable[str] = (), home: Home | None = None) -> Report:
    """Judge the journal of a run, as `moat audit --verify` does; `status` is 0 when it is proven.

    trusted: public keys besides this installation's own. Raises RunNotFoundError.
    """
    home, record = _found(run, home)
    keys = listed("trusted", trusted)
    check("trusted", keys, tuple[str, ...])
    return verify.run(home, record.id, alive=records.owned(home.run(record.id)), trusted=keys)


def _found(run: str, home: Home | None) -> tuple[Home, RunRecord]:
    check("run", run, str)
    check("home", home, Home | None)
    home = home or Home.from_environment()
    return home, known.find(home, run)
