"""The launcher: a short-lived process between the supervisor and bubblewrap.

A supervisor is asynchronous and may have threads, so it must not fork and enter namespaces itself. It
starts `python -I -S` on `main`, early, so that it is there by the time its plan is. It

1. forks an attendant;
2. enters the control groups of the run, over which the kernel takes 5 to 25 ms. The attendant stays
   outside: it must not be killed for the sandbox's memory;
3. waits for its plan, and tells the attendant its part of it;
4. run by root: takes the directories to bind as mounts that the agent's uid may use, and gives up root
   for good (bubblewrap started by the real uid 0 leaves /proc/sys writable from inside);
5. becomes bubblewrap, which stays the supervisor's own child.

The attendant learns from bubblewrap the pid of the sandbox, binds the run's listeners inside its network
namespace, and sends them to the supervisor. Then it waits for the supervisor to go away, however that
happens, and kills the sandbox: `--die-with-parent` alone has gaps (the death signal is cleared when the
uid changes, and bubblewrap's inner process sets its own only after it has been released).

A run with endpoints gets one more process: it stays in the sandbox's network namespace, outside everything
else of it, and makes sockets there for the supervisor (`dial.NamespaceDialler`) until that one goes away.

Standard library only, and little of it: every import is paid by every run, before its command starts.
`signal`, `socket`, `array` and `contextlib` would be a third of the launcher's time. `standby` starts it
without the packages' own `__init__`, for the same reason.
"""

from __future__ import annotations

import ctypes
import fcntl
import marshal
import os
import resource
import struct
import time

from moat.runtime import handover, idmap

TYPE_CHECKING = False  # typing's own would import typing
if TYPE_CHECKING:
    import signal
    import socket
    from collections.abc import Callable
    from typing import Any
else:
    import _signal as signal  # what `signal` and `socket` wrap, without their enumerations
    import _socket as socket

_NS_GET_USERNS = 0xB701
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP = 1, 24
_LOW_PORTS = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
_BACKLOG = 256
_LOOPBACK_DEADLINE = 5.0  # seconds; takes about one millisecond

_libc = ctypes.CDLL(None, use_errno=True)


class LaunchError(Exception):
    """What to tell the user: `step` is the key of the hint, which the supervisor chooses."""

    def __init__(self, step: str, cause: object) -> None:
        super().__init__(str(cause))
        self.step = step


def main(number: int) -> None:
    """Get the control groups and then a plan (`launcher.Plan`, both marshalled) at this socket; carry it out.

    Returns only by exec or exit.
    """
    control = socket.socket(fileno=number)
    groups = control.recv(65536)
    listen, tell = os.pipe()
    if os.fork() == 0:
        _attend(control, listen)
    os.close(listen)
    held = _enter(marshal.loads(groups)) if groups else []  # noqa: S302 - our own parent wrote it
    given = handover.take(control, tell)
    if given is None:  # the run ended before there was a plan
        os._exit(0)
    plan_fd, control, (tell,) = given
    try:
        with os.fdopen(plan_fd, "rb") as file:
            plan = marshal.load(file)  # noqa: S302 - as above, with the same interpreter
        _launch(plan, held, tell)
    except BaseException as error:  # the supervisor is the one to tell, whatever it is
        _report(control, error)
    os._exit(3)


def _enter(groups: dict[str, str]) -> list[str]:
    """Put this process under the limits of its run; tells which of them hold."""
    held = []
    for what, directory in groups.items():
        try:
            with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
        except OSError:
            continue
        held.append(what)
    return held


def _report(control: socket.socket, error: BaseException) -> None:
    step = error.step if isinstance(error, LaunchError) else "launch"
    text = str(error) if isinstance(error, (LaunchError, OSError)) else repr(error)
    try:  # noqa: SIM105 - contextlib is not imported here
        control.send(f"{step} {text}".encode())
    except OSError:
        pass  # it has ended


def _launch(plan: dict[str, Any], held: list[str], tell: int) -> None:
    """Become bubblewrap, which tells the attendant the rest."""
    _die_with(plan["parent"])
    os.chdir("/")
    os.umask(0o022)
    os.write(tell, marshal.dumps([held, plan["rlimits"], plan["listeners"], plan["ingress"]]))
    if plan["drop_to"] is not None:
        _stage(plan["stage"], plan["scratch"], plan["drop_to"])
        _drop(plan["drop_to"])
        _die_with(plan["parent"])  # the change of uid cleared it
    _reset_signals()
    idmap.leave_no_core()
    os.set_inheritable(tell, True)
    command = plan["command"]
    argv = [command[0], "--info-fd", str(tell), *command[1:]]
    os.execve(command[0], argv, plan["environment"])  # noqa: S606 - no shell is the point


def _die_with(parent: int) -> None:
    """Be killed when the supervisor ends; it may have ended before we asked."""
    idmap.check(
        _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "parent death signal"
    )
    if os.getppid() != parent:
        os._exit(3)


def _stage(sources: list[dict[str, Any]], scratch: str, uid: int) -> None:
    """Put every source at `scratch`/<index>, as the agent's own where that is possible.

    All are taken before `scratch` is covered: a workspace may well lie below it. None of the descriptors
    is left to bubblewrap, whose command would find the host behind it.
    """
    trees = []
    for source in sources:
        try:
            tree = idmap.clone(source["fd"])
        except OSError as error:
            raise LaunchError("source", f"cannot mount {source['path']}: {error}") from error
        os.close(source["fd"])
        try:
            idmap.show_as(tree, uid, uid)
        except OSError as error:
            if not source["read_only"]:
                raise LaunchError("idmap", f"cannot map the owner of {source['path']}: {error}") from error
        trees.append(tree)
    idmap.private_mounts(scratch)
    for index, tree in enumerate(trees):
        idmap.attach(tree, f"{scratch}/{index}")
        os.close(tree)


def _drop(uid: int) -> None:
    """Become `uid` with no groups, no capabilities and no way back."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0):
            break  # past the last one this kernel has
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _reset_signals() -> None:
    """The command starts with default dispositions; Python and the supervisor ignore some signals."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)


def _attend(control: socket.socket, listen: int) -> None:
    """The attendant's life; never returns."""
    try:
        _close_all_but(control.fileno(), listen)
        told = _told(listen)
        held, rlimits, listeners, ingress = marshal.loads(told)  # noqa: S302 - the launcher wrote it
        sandbox = _sandbox_pid(told)
        handle = os.pidfd_open(sandbox)
        try:
            limits = _limit(sandbox, held, rlimits)
            _in_child(lambda: _serve(listeners, sandbox, control, limits, ingress=ingress), control)
            while control.recv(64):  # the supervisor sends nothing; the end of the stream is its end
                pass
        finally:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the sandbox has ended by itself
    except BaseException as error:  # reported; there is nobody above to handle it
        _report(control, error)
    os._exit(0)


def _close_all_but(*kept: int) -> None:
    """The attendant must hold no pipe of the command open: its reader waits for the end of it."""
    low = 0
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)


def _told(listen: int) -> bytes:
    """What the launcher has for the attendant, and then, as bubblewrap, what it made."""
    text = b""
    while piece := os.read(listen, 4096):
        text += piece
    os.close(listen)
    if not text:  # there was no plan
        os._exit(0)
    return text


def _sandbox_pid(told: bytes) -> int:
    if not told.rstrip().endswith(b"}"):
        raise LaunchError("bwrap", "bubblewrap ended before there was a sandbox")
    return int(told.rpartition(b'"child-pid": ')[2].split(b",")[0].split()[0])


def _limit(pid: int, grouped: list[str], rlimits: dict[str, int]) -> dict[str, str]:
    """Hold the sandbox to the limits that no control group holds; tells for each what does."""
    held = dict.fromkeys(grouped, "control group")
    kinds = {"memory": resource.RLIMIT_DATA, "pids": resource.RLIMIT_NPROC}
    for what in rlimits.keys() - held.keys():
        if what == "cpu":
            os.sched_setaffinity(pid, sorted(os.sched_getaffinity(pid))[: rlimits[what]])
            held[what] = "affinity"
            continue
        kind = kinds[what]
        hard = resource.prlimit(pid, kind)[1]
        value = rlimits[what] if hard == resource.RLIM_INFINITY else min(rlimits[what], hard)
        resource.prlimit(pid, kind, (value, value))
        held[what] = "resource limit"
    return held


def _in_child(action: Callable[[], None], control: socket.socket) -> None:
    """Enter namespaces in a child that ends at once, so that the attendant stays outside."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:  # as in `_attend`
            _report(control, error)
        os._exit(0)
    os.waitpid(child, 0)


def _serve(
    listeners: list[list[Any]],
    sandbox: int,
    control: socket.socket,
    limits: dict[str, str],
    *,
    ingress: bool,
) -> None:
    """Bind `listeners` inside the sandbox's network namespace and send them out.

    With `ingress`, the last descriptor is the supervisor's end of the pair of `hand_out`.
    """
    try:
        _join_network(sandbox)
        _wait_for_loopback()
        _open_low_ports()
        sockets = [_listener(*listener) for listener in listeners]
        if ingress:
            sockets.append(_socket_maker())
    except OSError as error:
        raise LaunchError("network", f"cannot listen inside the sandbox: {error}") from error
    held = ",".join(f"{what}={how}" for what, how in limits.items())
    _send_with(control, f"made {sandbox} {held}".encode(), *sockets)


def _open_low_ports() -> None:
    """A convenience: the agent's own servers may use them."""
    try:
        with open(_LOW_PORTS, "w", encoding="ascii") as file:
            file.write("0")
    except OSError:
        pass


def _send_with(control: socket.socket, word: bytes, *sockets: socket.socket) -> None:
    fds = struct.pack(f"{len(sockets)}i", *(sock.fileno() for sock in sockets))
    control.sendmsg([word], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def _socket_maker() -> socket.socket:
    """Fork the process that makes sockets here; returns the end that asks it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            _close_all_but(ours.fileno())
            hand_out(ours)
        finally:
            os._exit(0)
    ours.close()
    return theirs


def hand_out(asked: socket.socket) -> None:
    """Make a TCP socket of this network namespace for each `4` or `6`; ends when nobody can ask any more."""
    while kind := asked.recv(8):
        family = socket.AF_INET6 if kind == b"6" else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            asked.send(str(error.errno).encode())
            continue
        try:
            _send_with(asked, b"+", sock)
        finally:
            sock.close()


def _join_network(sandbox: int) -> None:
    """The owner of the network namespace is asked for: with --disable-userns, /proc/PID/ns/user differs."""
    network = os.open(f"/proc/{sandbox}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(network).st_ino == os.stat("/proc/self/ns/net").st_ino:
        raise OSError("bubblewrap made no network namespace")  # never listen on the host's addresses
    owner = fcntl.ioctl(network, _NS_GET_USERNS)
    idmap.set_namespace(owner, idmap.CLONE_NEWUSER)
    idmap.set_namespace(network, idmap.CLONE_NEWNET)


def _wait_for_loopback() -> None:
    """Bubblewrap raises `lo` itself and dies when somebody else was first."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    deadline = time.monotonic() + _LOOPBACK_DEADLINE
    while time.monotonic() < deadline:
        answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        if struct.unpack("16sH14x", answer)[1] & _IFF_UP:
            return
        time.sleep(0.001)
    raise OSError("the loopback interface did not come up")


def _listener(kind: str, address: str, port: int, shared: bool) -> socket.socket:  # noqa: FBT001 - from JSON
    """A bound socket. `shared` lets one address have a listener of its own beside 0.0.0.0."""
    stream = kind == "tcp"
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    if stream:
        sock.listen(_BACKLOG)
    return sock
