"""What of the host a container sees, and as whom: the agent's uid and its view of the user's files.

A user's own runs have the user's uid, so everything fits. Moat run by root must not run an agent as uid 0:
the agent gets another uid, and an idmapped mount shows it root's files as its own (what it makes
is root's on disk). The mounts are made on the host, below the run's directory, and bound from there.

The engine takes names, not descriptors. So the first program of the container compares what is mounted with
what was held here (`Binds.proofs`), and starts no command where a name has led elsewhere meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path

from moat.errors import StartError
from moat.paths import private_dir
from moat.runtime import engine_socket, idmap, mounts, sources
from moat.runtime.container import EGRESS, Identity
from moat.runtime.sandbox import AGENT_UID, WORKSPACE, Mount, SandboxSpec

_SUFFIX = ".binds"
_HINT = "`chown` it to an ordinary user, or run Moat as one; the agent never gets uid 0"


def identity_of(workspace: Path) -> Identity:
    """The agent's uid and gid: the caller's own; root's agent is the workspace's owner, or AGENT_UID."""
    if os.geteuid() != 0:
        return Identity(os.geteuid(), os.getegid())
    owner = workspace.stat()
    if owner.st_uid == 0:
        return Identity(AGENT_UID, AGENT_UID)
    return Identity(owner.st_uid, owner.st_gid or owner.st_uid)


def _check_name(source: Path) -> None:
    """The engine is asked in JSON, which has no word for bytes that are no UTF-8: it would look elsewhere."""
    try:
        str(source).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(source).decode("utf-8", "backslashreplace")
        raise StartError(
            f"Docker cannot mount {shown}: its name is not UTF-8",
            hint="rename it, or use the embedded runtime: --runtime embedded",
        ) from None


class Binds:
    """The mounts of one run. `directory` is the run's private one, `engine` the engine's socket."""

    def __init__(self, directory: Path, run_id: str, engine: Path) -> None:
        self._engine = engine
        self._held: list[int] = []
        self.proofs: list[str] = []  # DEVICE:INODE:TARGET of what is to be mounted
        self._place = directory / f"{run_id}{_SUFFIX}"

    def make(self, spec: SandboxSpec, identity: Identity, egress: Path) -> list[Mount]:
        """Everything to bind. Raises StartError where a source is a link, or an idmapped mount impossible."""
        wanted = [Mount(spec.workspace, WORKSPACE), *spec.mounts]
        seen = [self._seen_by(mount, identity, number) for number, mount in enumerate(wanted)]
        return [*seen, Mount(egress, EGRESS, read_only=True)]

    def _seen_by(self, mount: Mount, identity: Identity, number: int) -> Mount:
        """The mount as `identity` can use it: itself, or an idmapped one in its place."""
        held = sources.hold(mount.source)
        self._held.append(held)
        found = os.fstat(held)
        self.proofs.append(f"{found.st_dev}:{found.st_ino}:{mount.target}")
        if os.geteuid() != 0 or found.st_uid != 0 or identity.uid == 0:
            _check_name(mount.source)
            return mount
        return Mount(self._idmapped(held, mount.source, identity, number), mount.target, mount.read_only)

    def _idmapped(self, held: int, source: Path, identity: Identity, number: int) -> Path:
        target = private_dir(self._place) / str(number)
        if not engine_socket.shares_mounts(self._engine):
            raise StartError(
                f"root owns {source}, and the Docker engine sees other mounts than Moat does",
                hint=_HINT,
            )
        try:
            tree = idmap.clone(held)
            try:
                idmap.show_as(tree, identity.uid, identity.gid)
                idmap.attach(tree, str(target))
            finally:
                os.close(tree)
        except OSError as error:
            raise StartError(
                f"root owns {source}, and it cannot be shown to the agent as its own: {error}", hint=_HINT
            ) from None
        return target

    def remove(self) -> None:
        """Take the mounts away. Idempotent. Raises OSError when one stays."""
        while self._held:
            os.close(self._held.pop())
        mounts.remove(self._place)

    @staticmethod
    def reap(run_id: str) -> None:
        """Take away what a killed supervisor left; the mount table knows where that is. Raises OSError."""
        marker = f"/{run_id}{_SUFFIX}/"
        for place in {Path(p.partition(marker)[0] + marker) for p in mounts.points() if marker in p}:
            mounts.remove(place)
