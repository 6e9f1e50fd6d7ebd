"""The launcher of a further command: a short-lived process that becomes part of a sandbox that runs.

`embedded_exec` starts it as `standby` starts `namespace`, with the standard library only. It joins every
namespace of the sandbox, forks (a pid namespace is entered by children only), and its child gives up all that
the entering needed before anything of the command runs: capabilities, other descriptors, the way to more of
either. Nothing inside can reach into the child before that: to trace it takes the capabilities that it still
has, and it is not dumpable until it executes the command.
"""

from __future__ import annotations

import ctypes
import fcntl
import marshal
import os
import resource
import signal
import struct
import sys
import termios

from moat.runtime import idmap, seccomp

TYPE_CHECKING = False  # typing's own would import typing
if TYPE_CHECKING:
    from typing import Any

_NS_GET_USERNS = 0xB701
_OTHERS = ("net", "ipc", "uts", "cgroup", "pid", "mnt")  # after the user namespace that owns them
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_DUMPABLE = 1, 24, 4
_CAPABILITY_V3 = 0x20080522
_BROKEN, _DENIED, _MISSING = 125, 126, 127  # as the shell and `sandbox_init` have them

_libc = ctypes.CDLL(None, use_errno=True)


def main(plan_fd: int) -> None:
    """Carry out the plan (`embedded_exec.Plan`, marshalled in a memfd); never returns."""
    with os.fdopen(plan_fd, "rb") as file:
        plan = marshal.load(file)  # noqa: S302 - our own parent wrote it, with the same interpreter
    try:
        _die_with_parent()
        if os.getppid() != plan["parent"]:
            os._exit(_BROKEN)
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        _limit(plan)
        _join(plan["sandbox"])
        child = os.fork()
        if child == 0:
            _execute(plan)
        os.write(plan["tell"], str(child).encode())
        os.close(plan["tell"])
        for fd in (0, 1, 2):
            os.close(fd)  # who reads the output waits for its end
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    except OSError as error:
        os.write(2, f"moat: the sandbox cannot be entered: {error.strerror or error}\n".encode())
    os._exit(_BROKEN)


def _die_with_parent() -> None:
    idmap.check(
        _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "parent death signal"
    )


def _limit(plan: dict[str, Any]) -> None:
    """The limits of the sandbox hold for what joins it."""
    idmap.leave_no_core()
    held = set()
    for what, directory in plan["cgroups"].items():
        with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        held.add(what)
    kinds = {"memory": resource.RLIMIT_DATA, "pids": resource.RLIMIT_NPROC}
    for what, value in plan["rlimits"].items():
        if what in held:
            continue
        if what == "cpu":
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:value])
            continue
        hard = resource.getrlimit(kinds[what])[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kinds[what], (limit, limit))


def _join(sandbox: int) -> None:
    """Every namespace of `sandbox`, and its root directory."""
    place = f"/proc/{sandbox}"
    fds = {name: os.open(f"{place}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", *_OTHERS)}
    root = os.open(f"{place}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    owner = fcntl.ioctl(fds["net"], _NS_GET_USERNS)
    if os.geteuid() == 0:
        os.setgroups([])
    if _same(fds["user"], "user") or _same(fds["net"], "net"):
        raise OSError("it has no namespaces of its own")  # never run the command on the host itself
    idmap.set_namespace(owner, idmap.CLONE_NEWUSER)
    for name in _OTHERS:
        if not _same(fds[name], name):
            idmap.set_namespace(fds[name], 0)
    sys.meta_path.clear()  # an import would now run what the agent wrote, with what is still held here
    os.fchdir(root)
    os.chroot(".")
    if not _same(fds["user"], "user", owner):
        idmap.set_namespace(fds["user"], idmap.CLONE_NEWUSER)


def _same(fd: int, name: str, other: int | None = None) -> bool:
    """Whether `fd` is the namespace that we, or `other`, are in already."""
    there = os.fstat(fd)
    here = os.fstat(other) if other is not None else _own(name)
    return here is not None and (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _own(name: str) -> os.stat_result | None:
    try:
        return os.stat(f"/proc/self/ns/{name}")
    except OSError:
        return None


def _execute(plan: dict[str, Any]) -> None:
    """The child: part of the sandbox from here on. Never returns."""
    try:
        os.setsid()
        if plan["terminal"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.closerange(3, 1 << 16)
        _give_up(plan["uid"], plan["gid"])
        _die_with_parent()  # the change of ids cleared it
        os.umask(0o022)
        os.chdir(plan["directory"])
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        seccomp.install(plan["bits"])
    except (OSError, seccomp.UnsupportedMachineError) as error:
        _leave(f"the command cannot be started: {error}", _BROKEN)
    _leave(*_replaced(plan["argv"], plan["environment"]))


def _replaced(argv: list[str], environment: dict[str, str]) -> tuple[str, int]:
    """Become the command; returns only with what to say and the status when that fails.

    `os.execvpe` would import, from the sandbox.
    """
    places = environment["PATH"].split(":") if "/" not in argv[0] else [""]
    refused = None
    for place in places:
        try:
            os.execve(os.path.join(place, argv[0]), argv, environment)  # noqa: S606 - no shell is wanted
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = refused or error
    if refused is None:
        return f"{argv[0]}: command not found", _MISSING
    return f"{argv[0]}: {refused.strerror}", _DENIED


def _give_up(uid: int, gid: int) -> None:
    """Become the agent, with no capability and no way to one."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0):
            break  # past the last one this kernel has
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header = struct.pack("Ii", _CAPABILITY_V3, 0)
    idmap.check(_libc.capset(header, bytes(24)), "give up capabilities")


def _leave(text: str, status: int) -> None:
    os.write(2, f"moat: {text}\n".encode(errors="replace"))
    os._exit(status)
