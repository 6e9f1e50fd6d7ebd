"""Mounts that show one owner as another, so that a sandbox need not run as root to use root's files.

`clone` takes a private copy of a mount, `show_as` attaches a user namespace that maps one uid and gid on
disk to the agent's, `attach` puts the copy at a path of the (private) mount namespace. Files that the
agent makes are then owned on disk by the mapped owner. Needs Linux 5.12 and a file system that supports
it. Imported by the launcher, which has no site-packages: standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

TYPE_CHECKING = False  # as in `namespace`
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_MOUNT_ATTR_IDMAP = 0x00100000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 1 << 18
_CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """`result` of a C call, or OSError from errno when it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    check(_libc.unshare(flags), "unshare")


def leave_no_core() -> None:
    """Have nobody told of a crash of this process or its descendants.

    Where `core_pattern` names a program, the kernel starts it as root, outside of every namespace, and hands
    it the memory of what crashed, whatever the limit: but for a limit of 1, which only such programs have.
    """
    try:  # noqa: SIM105 - contextlib is not imported here
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError:
        pass  # its hard limit is 0, which only root may raise


def set_namespace(fd: int, kind: int) -> None:
    """setns(2); Python has it from 3.12 on."""
    check(_libc.setns(fd, kind), "setns")


def private_mounts(scratch: str) -> None:
    """Enter a mount namespace of our own, with an empty tmpfs at `scratch` that anyone may traverse.

    Nothing mounted from here on is seen by the host, and all of it goes with the last process inside.
    """
    unshare(_CLONE_NEWNS)
    check(
        _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "make mounts private"
    )
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    check(
        _libc.mount(b"moat", scratch.encode(), b"tmpfs", flags, b"mode=0755,size=1m"), f"tmpfs on {scratch}"
    )


def clone(source: int) -> int:
    """A detached copy of the mount tree at the file that `source` holds, as a file descriptor."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
    return check(_libc.syscall(_OPEN_TREE, source, b"", flags), "copy of a mount")


def show_as(tree: int, uid: int, gid: int) -> None:
    """Show what belongs to the owner of `tree`'s root as `uid`:`gid`, and store it the other way round.

    Raises OSError: EINVAL where the file system (or one mounted below it) cannot do it.
    """
    owner = os.fstat(tree)
    namespace = _user_namespace(f"{owner.st_uid} {uid} 1\n", f"{owner.st_gid} {gid} 1\n")
    try:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
        flags = _AT_EMPTY_PATH | _AT_RECURSIVE
        size = ctypes.c_size_t(len(attributes))
        check(_libc.syscall(_MOUNT_SETATTR, tree, b"", flags, attributes, size), "idmapped mount")
    finally:
        os.close(namespace)


def attach(tree: int, target: str) -> None:
    """Mount `tree` at `target`, which is made as a directory or a file to fit."""
    if os.path.isdir(f"/proc/self/fd/{tree}"):
        os.mkdir(target, 0o755)
    else:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    check(_libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), flags), f"mount at {target}")


def _user_namespace(uid_map: str, gid_map: str) -> int:
    """A user namespace with these maps; it exists only through the descriptor."""
    ready, done = os.pipe()
    wanted, held = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(held)
            unshare(CLONE_NEWUSER)
            os.write(done, b"1")
            os.read(wanted, 1)  # also ends when we are killed: it has our locks, signs of life
        finally:
            os._exit(1)
    try:
        os.close(done)
        os.close(wanted)
        if not os.read(ready, 1):
            raise OSError("the kernel refuses a user namespace")
        for name, content in (("uid_map", uid_map), ("gid_map", gid_map)):
            fd = os.open(f"/proc/{child}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, content.encode())
            finally:
                os.close(fd)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(held)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
