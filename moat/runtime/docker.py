"""The Docker runtime: a container without a network, whose only way out is the run's unix socket.

The engine must share this machine's kernel: a unix socket does not cross into another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.paths import Home, private_dir
from moat.runtime import container, engine_socket, furniture, premises
from moat.runtime.binds import Binds, identity_of
from moat.runtime.container import LABEL, Identity
from moat.runtime.dial import ForwarderDialler
from moat.runtime.engine import Engine
from moat.runtime.engine_http import EngineError
from moat.runtime.engine_socket import EngineUnreachableError
from moat.runtime.engine_streams import Attachment, ContainerExecution, Ending
from moat.runtime.pod import Pod
from moat.runtime.sandbox import TERM, Egress, Output, Probe, Progress, SandboxSpec, ServiceEnd
from moat.runtime.size import Size

_LEAST_MEMORY = 4 << 30  # bytes; the default limit is half of the machine's, at least this
_SOCKET = "proxy.sock"
_FURNITURE = "furniture"  # in the run's directory: what is bound into its container
_KILLED = 137
_BACK = (0.0, 1.0, 2.0, 4.0, 8.0)  # seconds between attempts: an engine that restarts is back soon
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What of the engine decides how a container is made."""

    path: Path
    version: str
    api_version: str
    remapped: bool  # container uids are not the host's: every container asks for the host's
    limits_memory: bool
    limits_pids: bool
    limits_cpus: bool
    cpus: int  # it refuses a limit above this


def examine() -> EngineInfo:
    """Ask the engine what it is; blocks. Raises EngineUnreachableError with the reason and the way out."""
    path = engine_socket.engine_socket()
    answer = engine_socket.ask("GET", "/info", path=path)
    info = answer.body
    if answer.status != 200 or not isinstance(info, dict):
        raise EngineUnreachableError(f"the Docker engine at {path} does not answer as one")
    security = str(info.get("SecurityOptions") or "")
    reason = _foreign(info) or ("it is rootless" if "name=rootless" in security else "")
    if reason:
        raise EngineUnreachableError(
            f"the Docker engine cannot be used: {reason}", hint="use `--runtime embedded`"
        )
    return EngineInfo(
        path=path,
        version=str(info.get("ServerVersion", "")),
        api_version=answer.api_version or "1.41",
        remapped="name=userns" in security,
        limits_memory=bool(info.get("MemoryLimit")),
        limits_pids=bool(info.get("PidsLimit")),
        limits_cpus=bool(info.get("CpuCfsQuota")),
        cpus=int(info.get("NCPU") or os.cpu_count() or 1),
    )


def _foreign(info: dict[str, Any]) -> str:
    """Why this engine's containers cannot reach a socket of this machine; empty when they can."""
    if "Docker Desktop" in str(info.get("OperatingSystem", "")):
        return "Docker Desktop runs containers in a virtual machine of its own"
    if info.get("OSType") != "linux" or info.get("KernelVersion") != os.uname().release:
        return "it runs containers on another kernel than this machine's"
    return ""


class DockerRuntime:
    """Implements `sandbox.Runtime`. `cache` holds what images are made of and what is known of them."""

    name = "docker"

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache or Home.from_environment().cache / "docker"
        self._asked: asyncio.Future[EngineInfo] | None = None  # what the engine is

    async def probe(self) -> Probe:
        """Reach the engine and see whether its containers can share a socket with this machine."""
        try:
            info = await asyncio.to_thread(examine)
        except EngineUnreachableError as error:
            return Probe(usable=False, reason=str(error), hint=error.hint or "")
        missing = [
            n for n, there in (("memory", info.limits_memory), ("pids", info.limits_pids)) if not there
        ]
        limits = f"; it cannot limit {' and '.join(missing)}" if missing else ""
        return Probe(usable=True, reason=f"Docker {info.version} at {info.path}{limits}")

    def get_ready(self, run_id: str, *, memory: int, pids: int, cpus: float) -> None:
        """Ask the engine what it is, over which it takes a while."""
        del run_id, memory, pids, cpus
        self._asked = asyncio.get_running_loop().run_in_executor(None, examine)  # at once

    async def aclose(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
            await asyncio.gather(self._asked, return_exceptions=True)

    async def create(self, spec: SandboxSpec, egress: Egress, progress: Progress) -> DockerSandbox:
        """Make the container with its files and its egress socket. Raises StartError with a hint."""
        info = await self._examine()
        engine = Engine(info.path, api_version=info.api_version)
        sandbox = DockerSandbox(engine, spec, Binds(spec.directory, spec.run_id, info.path))
        try:
            return await self._create(sandbox, info, egress, progress)
        except BaseException as error:
            with contextlib.suppress(EngineError):  # what happened before is what to tell
                await asyncio.shield(sandbox.destroy())
            if isinstance(error, EngineError):
                raise StartError(f"the Docker engine refused: {error}") from None
            raise

    async def _examine(self) -> EngineInfo:
        try:
            return await (self._asked or asyncio.to_thread(examine))
        except EngineUnreachableError as error:
            raise StartError(str(error), hint=error.hint) from None

    async def _create(
        self, sandbox: DockerSandbox, info: EngineInfo, egress: Egress, progress: Progress
    ) -> DockerSandbox:
        from moat.runtime import image as images
        from moat.runtime.deps.resolve import machine
        from moat.runtime.dockerfile import plan

        spec, engine = sandbox.spec, sandbox.engine
        identity = identity_of(spec.workspace)
        directory = egress_directory(spec, identity)
        await egress.serve_unix(directory / _SOCKET, identity.uid)
        if spec.ingress:
            sandbox.dialler = ForwarderDialler(directory, identity.uid)
        image = await images.ensure(
            engine,
            plan(
                spec.dependencies,
                spec.base_image,
                machine=machine(),
                hooks=spec.hooks,
                identity=identity,
            ),
            cache=self._cache,
            progress=progress,
            rebuild=spec.rebuild,
        )
        cpus = min(spec.cpus, info.cpus) if info.limits_cpus else 0.0
        if spec.services:
            sandbox.pod = Pod(
                engine, spec, limits_memory=info.limits_memory, cpus=cpus, userns_host=info.remapped
            )
            await sandbox.pod.make(image.id, progress)
        found = await premises.of(engine, image, spec.run_id, self._cache)
        home = furniture.home(spec, identity, found)
        binds = sandbox.binds.make(spec, identity, directory)
        binds += furniture.bound(spec, identity, found, spec.directory / _FURNITURE)
        config = container.configuration(
            spec,
            image=image.id,
            identity=identity,
            binds=binds,
            proofs=sandbox.binds.proofs,
            memory=(spec.memory or default_memory()) if info.limits_memory else 0,
            cpus=cpus,
            network=sandbox.pod.network if sandbox.pod else None,
            userns_host=info.remapped,
        )
        sandbox.container = await engine.create(f"moat-{spec.run_id}", config)
        if home:
            await engine.put(sandbox.container, home)
        return sandbox

    async def reap(self, run_id: str) -> None:
        """Remove a dead run's container and mounts. Raises EngineUnreachableError: it may still be there."""
        await asyncio.to_thread(_reap, run_id)


def _reap(run_id: str) -> None:
    """An engine that was stopped has no socket, and may have left the container running (`live-restore`)."""
    try:
        for item in engine_socket.labelled(f"{LABEL}={run_id}"):
            engine_socket.remove(str(item["Id"]))
    except EngineUnreachableError:
        import shutil

        if engine_socket.engine_socket().exists() or shutil.which("docker"):
            raise  # else it is not installed any more: nothing is left of it
    Binds.reap(run_id)


def egress_directory(spec: SandboxSpec, identity: Identity) -> Path:
    """The directory with the run's socket: the agent's, and closed to everybody else.

    A directory is bound, not the socket: a socket made anew would not show through a file bind.
    """
    path = private_dir(spec.directory / "egress")
    if identity.uid != os.geteuid():
        os.chown(path, identity.uid, identity.gid)
    return path


def default_memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, max(_LEAST_MEMORY, total // 2))


class DockerSandbox:
    """Implements `sandbox.Sandbox`: one container."""

    def __init__(self, engine: Engine, spec: SandboxSpec, binds: Binds) -> None:
        self.engine = engine
        self.spec = spec
        self.binds = binds
        self.container = ""  # empty: not created, or destroyed
        self.dialler: ForwarderDialler | None = None
        self.pod: Pod | None = None  # what a run with services has besides
        self._streams: Attachment | None = None
        self._ending: Ending | None = None
        self._waiting = asyncio.Lock()
        self._status: int | None = None

    async def start(self) -> None:
        """Attach, then start: output is complete from its first byte on. Raises StartError."""
        try:
            self._ending = await self.engine.ending(self.container)
            self._streams = await self.engine.attach(
                self.container,
                stdin=self.spec.stdin or self.spec.tty is not None,
                terminal=self.spec.tty is not None,
            )
            await self.engine.start(self.container)
        except EngineError as error:
            raise StartError(f"the container does not start: {error}") from None

    async def read(self) -> Output | None:
        try:
            return await self._streams.read() if self._streams else None
        except EngineError:  # the engine went away: there is no more
            return None

    async def write(self, data: bytes) -> None:
        if self._streams:
            await self._streams.write(data)

    async def close_stdin(self) -> None:
        """Ends the command's stdin; a terminal has no end, there it is a ^D that does it."""
        if self._streams and not self.spec.tty:
            self._streams.write_eof()

    async def resize(self, size: Size) -> None:
        if self.container:
            await self.engine.resize(self.container, size)

    async def signal(self, number: int) -> None:
        """On a terminal to the foreground process group, else to the command."""
        if not self.container:
            return
        if self.spec.tty and number != signal.SIGKILL:
            status = await self.engine.run_inside(
                self.container, [*container.PYTHON, "--signal", str(number)]
            )
            if status == 0:
                return
        await self.engine.kill(self.container, number)

    async def dial(self, port: int) -> socket.socket:
        if self.dialler is None:
            raise ConnectionRefusedError("the sandbox was made without a way in")
        return await self.dialler.dial(port)

    async def wait(self) -> int:
        import_module("shutil")  # while the container comes up: its end needs it
        async with self._waiting:
            if self._status is None and self._ending:
                try:
                    self._status = await self._ending.status()
                    self._ending.close()
                except EngineError as error:
                    _log.warning("the end of the container is not known: %s", error)
                    text = "the Docker engine went away under the run"
                    raise StartError(text, hint="`docker info`") from None
        return _KILLED if self._status is None else self._status

    async def execute(
        self, argv: tuple[str, ...], *, tty: Size | None, stdin: bool, term: str = TERM
    ) -> ContainerExecution:
        size = ["--size", f"{tty.columns}x{tty.rows}"] if tty else []
        options = [*size, *container.later(self.spec.env)]
        command = [*container.PYTHON, "--exec", *options, "--", *argv]
        try:
            return await self.engine.execute(
                self.container,
                command,
                terminal=tty is not None,
                stdin=stdin or tty is not None,
                environment={"TERM": term} if tty else None,
            )
        except EngineError as error:
            raise StartError(f"nothing can be run in the container: {error}") from None

    async def service_ended(self, name: str) -> ServiceEnd | None:
        return await self.pod.ended(name) if self.pod else None

    async def first_pid(self) -> int:
        return await self.engine.pid(self.container) if self.container else 0

    async def pause(self) -> None:
        if self.container and await self.first_pid():
            await self.engine.pause(self.container)

    async def resume(self) -> None:
        if self.container:
            await self.engine.unpause(self.container)

    async def destroy(self) -> None:
        """Raises EngineError when the engine is away: the container may still be there."""
        try:
            await self._remove()
        finally:
            self._let_go()

    async def _remove(self) -> None:
        for pause in _BACK:
            await asyncio.sleep(pause)
            try:
                if self.container:
                    await self.engine.remove(self.container)
                    self.container = ""
                if self.pod:
                    await self.pod.destroy()
            except EngineError as error:
                if error.status or pause == _BACK[-1]:
                    raise
            else:
                return

    def _let_go(self) -> None:
        if self._streams:
            self._streams.close()
            self._streams = None
        if self._ending and not self._waiting.locked():  # who waits still gets the status
            self._ending.close()
            self._ending = None
        if self.dialler:
            self.dialler.close()
        self.binds.remove()
        import shutil  # with its compressors 7 ms; `wait` has imported it

        for name in ("egress", _FURNITURE):
            shutil.rmtree(self.spec.directory / name, ignore_errors=True)
