"""The system call filter of every sandbox: a classic BPF program, made in pure Python.

It stacks on whatever filter the engine installs. It refuses what a network namespace does not
separate (AF_VSOCK reaches the hypervisor), what widens the kernel's attack surface for no benefit to
an agent (io_uring, bpf, keyrings, mounts, further namespaces, odd protocols, line disciplines),
set-user-ID files (in the workspace they would be the user's on the host, or root's), and system calls of
a foreign architecture, which would bypass every number below.

Also copied into containers: standard library only, nothing of `moat`, Python 3.7 or later.
"""

from __future__ import annotations

import errno
import os
import struct

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000

# Offsets in struct seccomp_data. Arguments are read as their low 32 bits, the part the kernel reads for
# an `int` or `unsigned int`; comparing all 64 would let a caller pass by setting the high half.
_NUMBER, _ARCH = 0, 4
_ARGUMENT = (16, 24, 32, 40)

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000  # x86_64 only: the x32 call table repeats every call under another number
_X32_OWN = (512, 547)  # x32's own calls (ioctl, ptrace…): kernels before 5.4 take them without the bit too

# Families that a network namespace separates. Netlink is for ROUTE only (getifaddrs): the other
# protocols are subsystems that an agent without capabilities has no use for. So are those of the internet's
# that nothing speaks to a proxy; asked for one, the kernel would load its module (SCTP, DCCP, L2TP…).
_UNIX, _INET, _INET6 = 1, 2, 10
PROTOCOLS = (0, 1, 6, 17, 58, 262)  # the usual one, ICMP, TCP, UDP, ICMPv6, MPTCP
_NETLINK, _NETLINK_ROUTE = 16, 0

_TERMINAL = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX: input; TIOCSETD loads line disciplines
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_NEW_TIME = 0x80  # CLONE_NEWTIME; in clone() these bits are the exit signal

# name: (x86_64, aarch64); None where the architecture has no such call.
_ABSENT = {  # callers know how to go on when the kernel is too old to have it
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),  # its flags are behind a pointer; the C libraries fall back to clone
    "openat2": (437, 437),  # so is its mode
}
_FORBIDDEN = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
_SOCKET, _SOCKETPAIR = (41, 198), (53, 199)
_IOCTL = (16, 29)
_CLONE, _UNSHARE = (56, 220), (272, 97)
SET_USER_ID, SET_GROUP_ID = 0o4000, 0o2000
_MODES = (  # (x86_64, aarch64), and which argument is the mode of a file
    ((90, None), 1),  # chmod
    ((91, 52), 1),  # fchmod
    ((268, 53), 2),  # fchmodat
    ((452, 452), 2),  # fchmodat2
    ((85, None), 1),  # creat
    ((133, None), 1),  # mknod
    ((259, 33), 2),  # mknodat
)
_OPENS = (((257, 56), 2), ((2, None), 1))  # openat, open: which argument is the flags; the mode follows
MAKING = 0o20000100  # O_TMPFILE's own bit, O_CREAT: only then there is a mode

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2


class UnsupportedMachineError(Exception):
    """There is no filter for this processor architecture."""


def _op(code: int, value: int, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, on_true, on_false, value)


def _refuse(error: int) -> bytes:
    return _op(_RETURN, 0x00050000 | error)


def _when(number: int, body: bytes) -> bytes:
    """`body` for one system call; it must end in a return."""
    return _op(_JEQ, number, 0, len(body) // 8) + body


def _sockets(number: int) -> bytes:
    """Only families that a network namespace separates, and of their protocols those that are of use."""
    body = _op(_LOAD, _ARGUMENT[0]) + _op(_JEQ, _UNIX, 0, 1) + _op(_RETURN, _ALLOW)
    for family, protocols in ((_INET, PROTOCOLS), (_INET6, PROTOCOLS), (_NETLINK, (_NETLINK_ROUTE,))):
        some = _op(_LOAD, _ARGUMENT[2])
        some += b"".join(_op(_JEQ, protocol, 0, 1) + _op(_RETURN, _ALLOW) for protocol in protocols)
        body += _when(family, some + _refuse(errno.EPROTONOSUPPORT))
    return _when(number, body + _refuse(errno.EAFNOSUPPORT))


def _flags(number: int, mask: int) -> bytes:
    body = _op(_LOAD, _ARGUMENT[0]) + _op(_JSET, mask, 0, 1) + _refuse(errno.EPERM) + _op(_RETURN, _ALLOW)
    return _when(number, body)


def _mode(number: int, argument: int, bits: int) -> bytes:
    body = _op(_LOAD, _ARGUMENT[argument]) + _op(_JSET, bits, 0, 1) + _refuse(errno.EPERM)
    return _when(number, body + _op(_RETURN, _ALLOW))


def _open(number: int, argument: int, bits: int) -> bytes:
    body = _op(_LOAD, _ARGUMENT[argument]) + _op(_JSET, MAKING, 1, 0) + _op(_RETURN, _ALLOW)
    body += _op(_LOAD, _ARGUMENT[argument + 1]) + _op(_JSET, bits, 0, 1) + _refuse(errno.EPERM)
    return _when(number, body + _op(_RETURN, _ALLOW))


def _ioctls(number: int) -> bytes:
    body = _op(_LOAD, _ARGUMENT[1])
    for request in _TERMINAL:
        body += _op(_JEQ, request, 0, 1) + _refuse(errno.EPERM)
    return _when(number, body + _op(_RETURN, _ALLOW))


def program(machine: str | None = None, bits: int = SET_USER_ID) -> bytes:
    """The filter as an array of `struct sock_filter`, for `machine` (`uname -m`).

    bits: of a mode, that no file may get.
    Raises UnsupportedMachineError for an architecture whose call numbers are not known here.
    """
    machine = machine or os.uname().machine
    if machine not in _AUDIT_ARCH:
        raise UnsupportedMachineError("no system call filter for " + machine)
    column = 0 if machine == "x86_64" else 1
    parts = [_op(_LOAD, _ARCH), _op(_JEQ, _AUDIT_ARCH[machine], 1, 0), _op(_RETURN, _KILL)]
    parts.append(_op(_LOAD, _NUMBER))
    if machine == "x86_64":
        first, last = _X32_OWN
        parts += [_op(_JGE, _X32_BIT, 2, 0), _op(_JGE, last + 1, 2, 0), _op(_JGE, first, 0, 1)]
        parts.append(_refuse(errno.ENOSYS))
    # First, because no other is called as often.
    for make, calls in ((_open, _OPENS), (_mode, _MODES)):
        for call, argument in calls:
            number = call[column]
            if number is not None:
                parts.append(make(number, argument, bits))
    for table, error in ((_ABSENT, errno.ENOSYS), (_FORBIDDEN, errno.EPERM)):
        for numbers in table.values():
            number = numbers[column]
            if number is not None:
                parts.append(_when(number, _refuse(error)))
    parts += [_sockets(_SOCKET[column]), _sockets(_SOCKETPAIR[column]), _ioctls(_IOCTL[column])]
    parts += [_flags(_CLONE[column], _NEW_NAMESPACE), _flags(_UNSHARE[column], _NEW_NAMESPACE | _NEW_TIME)]
    parts.append(_op(_RETURN, _ALLOW))
    return b"".join(parts)


def install(bits: int = SET_USER_ID) -> None:
    """Put this process (one thread) and all its descendants under the filter, with no_new_privs.

    bits: as `program`.
    Raises OSError when the kernel refuses, UnsupportedMachineError as `program`.
    """
    import ctypes  # who only makes the program does without

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    code = program(bits=bits)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = Program(len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    unsigned = ctypes.c_ulong
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, unsigned(1), unsigned(0), unsigned(0), unsigned(0)):
        raise OSError(ctypes.get_errno(), "no_new_privs: " + os.strerror(ctypes.get_errno()))
    if libc.prctl(_PR_SET_SECCOMP, unsigned(_SECCOMP_MODE_FILTER), ctypes.byref(filter_program)):
        raise OSError(ctypes.get_errno(), "seccomp: " + os.strerror(ctypes.get_errno()))
