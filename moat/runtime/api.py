"""Starting a run from a program, with the words a caller has at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from moat.config import NetworkConfig, PluginsConfig, SnapshotConfig
from moat.errors import UsageError
from moat.journal import keeping, verify
from moat.journal.entry import Entry, entries
from moat.journal.verify import Report
from moat.paths import Home
from moat.proxy.decider import Decider
from moat.runtime import known, records
from moat.runtime.records import RunRecord
from moat.runtime.request import RunRequest
from moat.runtime.run import LocalRun, run_here
from moat.runtime.sandbox import Mount, Progress
from moat.runtime.size import Size


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
    if isinstance(argv, (str, bytes)) or not argv:
        raise UsageError("argv is a list: the command and its arguments")
    if isinstance(grants, str) or isinstance(dependencies, str):
        raise UsageError("grants and dependencies are lists of names")
    request = RunRequest(
        argv=tuple(os.fspath(word) for word in argv),
        workspace=Path(workspace).absolute(),
        grants=tuple(grants),
        env=dict(env or {}),
        network=network or NetworkConfig(),
        mounts=tuple(Mount.of(mount.source, mount.target, read_only=mount.read_only) for mount in mounts),
        runtime=runtime,
        name=name,
        tty=tty,
        stdin=stdin,
        ports=dict(ports or {}),
        dependencies=tuple(dependencies),
        base_image=base_image,
        snapshots=snapshots or SnapshotConfig(disabled=True),
        plugins=plugins,
    )
    return run_here(request, home=home, progress=progress, decider=decider)


def list_runs(*, home: Home | None = None) -> list[RunRecord]:
    """Every run that has not been removed, newest first, whoever started it."""
    return known.all_runs(home or Home.from_environment())


def read_journal(run: str, *, home: Home | None = None) -> list[Entry]:
    """The entries of a run's journal, oldest first; `run` is a name or an id. Nothing is verified.

    Raises RunNotFoundError. A run that goes on has more every moment; a half line at the end is left out.
    """
    home = home or Home.from_environment()
    record = known.find(home, run)
    return list(entries(home.run(record.id) / keeping.FILE))


def verify_journal(run: str, *, trusted: Iterable[str] = (), home: Home | None = None) -> Report:
    """Judge the journal of a run, as `moat audit --verify` does; `status` is 0 when it is proven.

    trusted: public keys besides this installation's own. Raises RunNotFoundError.
    """
    home = home or Home.from_environment()
    record = known.find(home, run)
    return verify.run(home, record.id, alive=records.owned(home.run(record.id)), trusted=tuple(trusted))
