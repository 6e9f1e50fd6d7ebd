"""SSH as a part of a run: the filtering agent, the tunnels, and what clients in the sandbox have to know."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread

from moat.authority import Authority, parse_authority
from moat.errors import GrantError, MoatError
from moat.paths import private_dir
from moat.proxy.ssh import SshTunnel
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import AGENT_UID, HOME, HomeFile, Mount
from moat.runtime.ssh import home, hostkeys, signing
from moat.runtime.ssh.agent import Agent, listen
from moat.runtime.ssh.rules import Destination, Rules
from moat.vault import Vault
from moat.vault.ssh import PREFIX, SshGrant

PLACE = "/run/moat-ssh"  # in the sandbox; holds the agent's socket
_SOCKET = "agent.sock"
_SESSIONS = 4096  # remembered per host; a client binds its session within moments of its key exchange


class Sessions:
    """The sessions with one host that went through the run's tunnel, newest last."""

    def __init__(self) -> None:
        self._signatures: collections.deque[bytes] = collections.deque(maxlen=_SESSIONS)

    def add(self, signature: bytes) -> None:
        self._signatures.append(signature)

    def __contains__(self, signature: bytes) -> bool:
        return signature in self._signatures


class SshPart(Part):
    name = "ssh"

    async def prepare(self, run: RunContext) -> Addition:
        """Raises GrantError for a host whose key is not known, or a key that cannot sign."""
        assert run.vault is not None  # there are grants
        grants = await anyio.to_thread.run_sync(_grants, run.vault, run.request.grants)
        known = await anyio.to_thread.run_sync(_host_keys, grants)
        for grant in grants:
            await signing.check(grant)
        sessions: dict[Authority, Sessions] = collections.defaultdict(Sessions)
        for grant in grants:
            sessions[_authority(grant)] = Sessions()
        destinations = tuple(
            Destination(grant, known[grant.name], sessions[_authority(grant)].__contains__)
            for grant in grants
        )
        vault = run.vault
        agent = Agent(
            rules=lambda: Rules(destinations),
            revoked=lambda grant: _revoked(vault, grant),
            journal=run.journal,
        )
        directory = _directory(run)
        sock = listen(directory / _SOCKET)
        run.start("ssh agent", lambda: agent.serve(sock))
        return Addition(
            env={"SSH_AUTH_SOCK": f"{PLACE}/{_SOCKET}"},
            mounts=(Mount.of(directory, PLACE, read_only=True),),
            home_files=_home_files(run, grants, known),
            tunnels=tuple(SshTunnel(authority, seen.add) for authority, seen in sessions.items()),
            dependencies=("ssh",),
        )


def _grants(vault: Vault, names: tuple[str, ...]) -> tuple[SshGrant, ...]:
    return tuple(SshGrant.of(vault.info(name)) for name in names if name.startswith(PREFIX))


def _host_keys(grants: tuple[SshGrant, ...]) -> Mapping[str, hostkeys.HostKeys]:
    """What is known of each host. Raises one GrantError for all that are not known."""
    known = {grant.name: hostkeys.look_up(grant.known_as, grant.known_hosts) for grant in grants}
    missing = [grant for grant in grants if not known[grant.name]]
    if missing:
        raise GrantError(
            "\n".join(map(unknown_host, missing)),
            hint="\n".join(how_to_know(grant) for grant in missing),
        )
    return known


def unknown_host(grant: SshGrant) -> str:
    """Why a session with this host could not be told from one with somebody else."""
    return f"no host key of {grant.known_as} is known (looked in {', '.join(grant.known_hosts)})"


def how_to_know(grant: SshGrant) -> str:
    port = f" -p {grant.port}" if grant.port != 22 and grant.host == grant.hostname else ""
    return (
        f"connect once with `ssh{port} {grant.user or 'git'}@{grant.host}`, and compare the fingerprint "
        "that it shows with the one that the host publishes"
    )


def _authority(grant: SshGrant) -> Authority:
    try:
        return parse_authority(f"{grant.hostname}:{grant.port}")
    except MoatError as error:
        raise GrantError(f"{grant.name}: {error}") from None


def _revoked(vault: Vault, grant: SshGrant) -> bool:
    """Also when it is for another key by now. Blocks."""
    try:
        return SshGrant.of(vault.info(grant.name)).key != grant.key
    except MoatError:
        return True


def _directory(run: RunContext) -> Path:
    """Where the socket lies: owned by whom the sandbox's agent is on the host."""
    path = private_dir(run.directory / "ssh")
    if os.geteuid() == 0:
        from moat.runtime.binds import identity_of
        from moat.runtime.container import Identity

        agent = Identity(AGENT_UID, AGENT_UID)
        if run.runtime == "docker":
            agent = identity_of(run.request.workspace)
        os.chown(path, agent.uid, agent.gid)
    return path


def _home_files(
    run: RunContext, grants: tuple[SshGrant, ...], known: Mapping[str, hostkeys.HostKeys]
) -> tuple[HomeFile, ...]:
    files = [HomeFile(".ssh/known_hosts", home.known_hosts(grants, known))]
    if config := home.config(grants):
        files.append(HomeFile(".ssh/config", config))
    covered = any(f"{HOME}/{home.GIT_CONFIG}/".startswith(f"{m.target}/") for m in run.request.mounts)
    if home.rewrites_github(run.request, os.environ) and not covered:
        files.append(HomeFile(home.GIT_CONFIG, home.GIT_REWRITE))
    return tuple(files)
