"""The embedded runtime: bubblewrap on the host's own /usr. No daemon, no image, no root.

The sandbox's network namespace has nothing but loopback; the listeners in it are made from outside and
handed to the run's egress, so nothing of ours runs inside. An address that no listener covers has no
route: it fails at once (ENETUNREACH). Routing every address to loopback instead would let IP literals
reach the capture, but then the sandbox's own servers and the kernel's ping replies would answer for any
address, and an agent (or a test) would believe a host reachable that is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from importlib import import_module
from pathlib import Path

import anyio

from moat.errors import StartError
from moat.runtime import bwrap, cgroup, launcher, processes, procfs, sources, standby
from moat.runtime.dial import NamespaceDialler
from moat.runtime.embedded_exec import Belonging, EmbeddedExecution, execute
from moat.runtime.environment import complete
from moat.runtime.sandbox import (
    AGENT_UID,
    TERM,
    WORKSPACE,
    Egress,
    EgressSockets,
    Mount,
    Probe,
    Progress,
    SandboxSpec,
)
from moat.runtime.size import Size
from moat.runtime.stdio import OverStdio, Stdio, open_pipes, open_terminal

_SCRATCH = "/tmp"  # noqa: S108 - covered by a private tmpfs in the launcher's own mount namespace
_START_DEADLINE = 20.0  # seconds; takes a tenth of one
_END_DEADLINE = 5.0
_MAX_PORTS = 200  # what one message with descriptors carries

_HINTS = {
    "idmap": (
        "Moat run by root needs Linux 5.12 and a workspace on ext4, xfs, btrfs or tmpfs; "
        "else run Moat as the workspace's owner, or with --runtime docker"
    ),
    "launch": "Moat run by root needs the right to mount (CAP_SYS_ADMIN); else run it as an ordinary user",
    "network": "run `moat doctor`",
}


class EmbeddedSandbox(OverStdio):
    """Implements `sandbox.Sandbox`. The sandbox ends with the thread that made it (PR_SET_PDEATHSIG)."""

    def __init__(
        self,
        launch: launcher.Launch,
        *,
        run_id: str,
        stdio: Stdio,
        group: cgroup.Group,
        belonging: Belonging,
    ) -> None:
        self.limits: dict[str, str] = {}  # what holds memory and pids: "control group" or "resource limit"
        self._process = launch.process
        self._control = launch.control
        self._release: int | None = launch.release
        self._run_id = run_id
        self._stdio = stdio
        self._group = group
        self._belonging = belonging
        self._init: int | None = None  # pidfd of pid 1 of the sandbox
        self._init_pid = 0
        self._command: int | None = None  # pidfd of the command, pid 2
        self._dialler: NamespaceDialler | None = None
        self._started = False
        self._paused: list[processes.Process] = []
        self._ending = anyio.Lock()
        self._ended = False
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = loop.create_future()
        self._handle = os.pidfd_open(launch.process.pid)
        loop.add_reader(self._handle, self._reap)

    def _reap(self) -> None:
        status = self._process.wait()
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        if not self._exit.done():
            self._exit.set_result(status if status >= 0 else 128 - status)

    async def made(self, *, ingress: bool) -> list[int]:
        """Wait for the attendant's word; the listeners' descriptors. Raises StartError."""
        try:
            with anyio.fail_after(_START_DEADLINE):
                await anyio.wait_readable(self._control)
        except TimeoutError:
            raise StartError("bubblewrap does not answer", hint="run `moat doctor`") from None
        flags = socket.MSG_CMSG_CLOEXEC
        data, fds, _, _ = socket.recv_fds(self._control, 65536, _MAX_PORTS + 5, flags)
        word, _, rest = (data or b"bwrap").decode(errors="replace").partition(" ")
        if word != "made":
            raise await self._failure(word, rest)
        pid, _, held = rest.partition(" ")
        self.limits = dict(part.split("=", 1) for part in held.split(",") if part)
        self._init_pid = int(pid)
        with contextlib.suppress(ProcessLookupError):  # ended already; its output says why
            self._init = os.pidfd_open(self._init_pid)
        if ingress:
            self._dialler = NamespaceDialler(socket.socket(fileno=fds.pop()))
        return fds

    async def _failure(self, step: str, cause: str) -> StartError:
        if step != "bwrap":
            return StartError(cause, hint=_HINTS.get(step))
        with anyio.move_on_after(_END_DEADLINE):
            await self.wait()
        return bwrap.diagnose(self._stdio.read_available().decode(errors="replace"))

    async def start(self) -> None:
        if self._release is not None:
            os.write(self._release, b"1")
            os.close(self._release)
            self._release = None
            self._started = True

    async def signal(self, number: int) -> None:
        """Before the start and after the end there is nobody to signal, and nothing happens."""
        if not self._started or self._exit.done():
            return
        group = self._stdio.foreground()
        with contextlib.suppress(ProcessLookupError):
            if group is not None:
                os.killpg(group, number)
            elif (command := await self._command_handle()) is not None:
                signal.pidfd_send_signal(command, number)

    async def _command_handle(self, *, patience: float = 1.0) -> int | None:
        """The command is the first process that pid 1 starts, a moment after the release."""
        with anyio.move_on_after(patience):
            while self._command is None and not self._exit.done():
                self._command = procfs.open_command(self._init_pid)
                if self._command is None:
                    await anyio.sleep(0.005)
        return self._command

    async def dial(self, port: int) -> socket.socket:
        if self._dialler is None:
            raise ConnectionRefusedError("the sandbox was made without a way in")
        return await self._dialler.dial(port)

    async def wait(self) -> int:
        return await asyncio.shield(self._exit)

    async def execute(
        self, argv: tuple[str, ...], *, tty: Size | None, stdin: bool, term: str = TERM
    ) -> EmbeddedExecution:
        # Until the command is there, bubblewrap still makes the tree, beside the host's own.
        pid = await self.first_pid()
        if not pid or await self._command_handle(patience=_START_DEADLINE) is None:
            raise StartError("nothing runs in the sandbox")
        return execute(pid, argv, self._belonging.at(term) if tty else self._belonging, tty=tty, stdin=stdin)

    async def service_ended(self, name: str) -> None:
        """There are none here."""

    async def first_pid(self) -> int:
        return self._init_pid if self._started and not self._exit.done() else 0

    async def pause(self) -> None:
        """By SIGSTOP, which nothing in there can refuse: control groups are not to be had everywhere."""
        pid = await self.first_pid()
        if pid and not self._paused:
            self._paused = await asyncio.to_thread(processes.stop, pid)

    async def resume(self) -> None:
        paused, self._paused = self._paused, []
        processes.go_on(paused)

    async def destroy(self) -> None:
        with anyio.CancelScope(shield=True):
            async with self._ending:
                if not self._ended:
                    await self._end()
                    self._ended = True

    async def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._init is not None:
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
        self._process.kill()
        with anyio.move_on_after(_END_DEADLINE):
            await self.wait()
            if self._init is not None:  # readable when the last process of its namespace is gone
                await anyio.wait_readable(self._init)
            self._control.shutdown(socket.SHUT_WR)
            while await _hear(self._control):
                pass
        procfs.kill_marked(self._run_id)
        for fd in (self._release, self._init, self._command):
            if fd is not None:
                os.close(fd)
        self._release = self._init = self._command = None
        if self._dialler is not None:
            self._dialler.close()
        self._control.close()
        self._stdio.close()
        await _remove(self._group)


class EmbeddedRuntime:
    """Implements `sandbox.Runtime`."""

    name = "embedded"

    def __init__(self) -> None:
        self._ahead: standby.Standby | None = None

    def get_ready(self, run_id: str, *, memory: int, pids: int, cpus: float) -> None:
        """Start the launcher: it takes as long to come up as all the rest of `create`."""
        self._ahead = standby.stand_by(run_id, memory=memory or _default_memory(), pids=pids, cpus=cpus)

    async def aclose(self) -> None:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            await _dismiss(ahead)

    async def probe(self) -> Probe:
        """Runs `true` in a sandbox made exactly as for a run; about a tenth of a second."""
        import tempfile  # not for a run

        with tempfile.TemporaryDirectory(prefix="moat-probe-") as directory:
            path = Path(directory).resolve()  # /tmp may be a link
            spec = SandboxSpec(
                run_id=path.name, argv=("true",), workspace=path, ca_bundle=b"", directory=path
            )
            try:
                version = bwrap.version(bwrap.find())
                sandbox = await self.create(spec, _NoEgress(), lambda _line: None)
            except StartError as error:
                return Probe(usable=False, reason=str(error), hint=error.hint or "")
            try:
                await sandbox.start()
                status = await sandbox.wait()
            finally:
                await sandbox.destroy()
        if status != 0:
            return Probe(usable=False, reason=f"`true` in a sandbox ended with status {status}")
        limits = ", ".join(f"{what} by {how}" for what, how in sorted(sandbox.limits.items()))
        return Probe(usable=True, reason=f"{version}; limits: {limits or 'none'}")

    async def create(self, spec: SandboxSpec, egress: Egress, progress: Progress) -> EmbeddedSandbox:
        """Raises StartError where bubblewrap, user namespaces or (for root) idmapped mounts are missing."""
        tool = bwrap.find()
        bwrap.check_targets([mount.target for mount in spec.mounts], spec.home_files)
        if len(spec.host_ports) + len(spec.captured) > _MAX_PORTS:
            raise StartError(f"more than {_MAX_PORTS} host ports")
        progress("starting the sandbox")
        if self._ahead is None:
            self.get_ready(spec.run_id, memory=spec.memory, pids=spec.pids, cpus=spec.cpus)
        assert self._ahead
        try:
            sandbox = _launch(self._ahead, tool, spec)
        except BaseException:
            await self.aclose()
            raise
        self._ahead = None
        try:
            import_module("shutil")  # while bubblewrap comes up: the end of the run needs it
            fds = await sandbox.made(ingress=spec.ingress)
            await egress.serve_sockets(_sockets(fds, spec.host_ports))
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def reap(self, run_id: str) -> None:
        procfs.kill_marked(run_id)
        await _remove(cgroup.find(run_id))


class _NoEgress:
    async def serve_unix(self, path: Path, uid: int) -> None:
        """Not used by this runtime."""

    async def serve_sockets(self, sockets: EgressSockets) -> None:
        for fd in (sockets.proxy, sockets.http, sockets.https, sockets.dns):
            os.close(fd)


def _binds(spec: SandboxSpec) -> list[bwrap.Bind]:
    """The workspace first, then the run's mounts, each with a descriptor of its source. Raises StartError."""
    binds: list[bwrap.Bind] = []
    try:
        for mount in (Mount(spec.workspace, WORKSPACE), *spec.mounts):
            fd = sources.hold(mount.source)
            binds.append(bwrap.Bind(str(mount.source), mount.target, mount.read_only, fd))
    except BaseException:
        for bind in binds:
            os.close(bind.fd)
        raise
    return binds


def _launch(ahead: standby.Standby, tool: bwrap.Tool, spec: SandboxSpec) -> EmbeddedSandbox:
    """Have the launcher become bubblewrap. Raises StartError before anything runs."""
    root = os.geteuid() == 0
    uid, gid = (AGENT_UID, AGENT_UID) if root else (os.getuid(), os.getgid())
    memory = spec.memory or _default_memory()
    environment = complete(spec.env, terminal=spec.tty is not None)
    binds = _binds(spec)
    tree = bwrap.Tree(
        uid=uid,
        gid=gid,
        binds=tuple(binds),
        staged=_SCRATCH if root else None,
        home_files=spec.home_files,
        ca_bundle=spec.ca_bundle,
        env=environment,
        memory=memory,
    )
    arguments = bwrap.arguments(tool, tree)
    plan = launcher.Plan(
        parent=os.getpid(),
        command=[tool.path],
        environment=standby.environment(spec.run_id),
        drop_to=uid if root else None,
        scratch=_SCRATCH,
        stage=[{"fd": bind.fd, "path": bind.source, "read_only": bind.read_only} for bind in binds if root],
        rlimits=launcher.rlimits(memory=memory, pids=spec.pids, cpus=spec.cpus),
        listeners=launcher.listeners(spec.host_ports, spec.captured),
        ingress=spec.ingress,
    )
    try:
        stdio = open_terminal(spec.tty, uid) if spec.tty else open_pipes(stdin=spec.stdin)
    except BaseException:  # no descriptor is left
        arguments.close()
        raise
    try:
        launch = launcher.launch(
            ahead, plan, arguments, spec.argv, terminal=spec.tty is not None, stdio=stdio
        )
    except BaseException:
        stdio.close()
        raise
    belonging = Belonging(
        uid=uid, gid=gid, environment=tree.env, cgroups=ahead.group.directories, rlimits=plan.rlimits
    )
    return EmbeddedSandbox(launch, run_id=spec.run_id, stdio=stdio, group=ahead.group, belonging=belonging)


def _default_memory() -> int:
    """Half of the machine's memory, but not less than 4 GiB: what a large build needs."""
    return max(4 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _sockets(fds: list[int], host_ports: tuple[int, ...]) -> EgressSockets:
    proxy, http, https, dns, *others = fds
    count = len(host_ports)
    pairs = tuple(zip(host_ports, others[:count], strict=True))
    captured = tuple(others[count:])
    return EgressSockets(proxy=proxy, http=http, https=https, dns=dns, host_ports=pairs, captured=captured)


async def _hear(control: socket.socket) -> bool:
    """False when the attendant has ended."""
    await anyio.wait_readable(control)
    with contextlib.suppress(ConnectionError):
        return bool(control.recv(4096))
    return False


async def _dismiss(ahead: standby.Standby) -> None:
    with anyio.CancelScope(shield=True):
        ahead.dismiss()
        await _remove(ahead.group)


async def _remove(group: cgroup.Group) -> None:
    """A killed process leaves its group a little after it is gone from everywhere else."""
    with anyio.move_on_after(_END_DEADLINE):
        while not group.remove():
            await anyio.sleep(0.01)
