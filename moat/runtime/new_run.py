"""What a run is before anything of it exists: its request, checked, and its first record."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from moat.journal import Journal
from moat.paths import Home
from moat.runtime import records
from moat.runtime.choice import choose
from moat.runtime.names import random_name
from moat.runtime.plugins.fetch import tell
from moat.runtime.records import RunRecord
from moat.runtime.request import RunRequest
from moat.runtime.words import check_argv, check_env
from moat.runtime.workspace import check_mounts, check_workspace


def checked(request: RunRequest, home: Home) -> RunRequest:
    """`request` with everything spelt out that a run goes by.

    Raises ConfigError, GrantError, StartError, UsageError.
    """
    check_argv(request.argv)
    check_env(request.env)
    workspace = check_workspace(request.workspace, home)
    check_mounts(request.mounts, home)
    name = records.check_name(request.name) if request.name else random_name()
    return dataclasses.replace(
        request,
        workspace=workspace,
        name=name,
        runtime=choose(request.runtime),
        grants=_grants(request),
    )


def _grants(request: RunRequest) -> tuple[str, ...]:
    """What was asked for by name, and what the MCP servers of the run need. Raises GrantError."""
    names = (*request.grants, *(server.grant for server in request.mcp if server.grant))
    if not names:
        return ()  # and nothing of the vault is loaded, here and below
    from moat.runtime.granted import unique

    return unique(names)


def _profile(request: RunRequest) -> str:
    if not request.grants:
        return ""
    from moat.vault.profile import current

    return current()


def first_record(request: RunRequest, run_id: str, directory: Path) -> RunRecord:
    """Of a checked request. `directory`: where the run's sockets and mounts will lie."""
    assert request.name is not None
    assert request.runtime is not None
    return RunRecord(
        id=run_id,
        name=request.name,
        workspace=str(request.workspace),
        argv=request.argv,
        created_at=time.time(),
        runtime=request.runtime,
        grants=request.grants,
        profile=_profile(request),
        agent=request.agent,
        config=request.config,
        ports=dict(request.ports),
        worktree=request.worktree,
        tty=request.tty is not None,
        pid=os.getpid(),
        boot=records.boot_id(),
        socket=str(directory / "control.sock"),
        directory=str(directory),
    )


def tell_created(journal: Journal, request: RunRequest) -> None:
    """The first entries of a run's journal: what it was asked for, what was fetched before there was one."""
    journal.record(
        "run.created",
        name=request.name,
        runtime=request.runtime,
        workspace=str(request.workspace),
        agent=request.agent,
        grants=request.grants,
        policy=request.network.policy,
        mode=request.network.mode,
        budgets=tuple(map(str, request.network.budgets)),
        host_ports=request.network.host,
    )
    for fetch in request.fetches:
        tell(journal, fetch)
