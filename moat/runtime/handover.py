"""Descriptors on their way to a launcher that waits: each gets the number that its plan knows it by.

Standard library only, and little of it: see `namespace`.
"""

from __future__ import annotations

import fcntl
import os
import struct

TYPE_CHECKING = False  # typing's own would import typing
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
else:
    import _socket as socket

_AT_ONCE = 200  # the kernel takes 253 in one message
_INT = struct.calcsize("i")


def send(control: socket.socket, fds: Sequence[tuple[int, int]]) -> None:
    """Send each descriptor with the number that it is to have there; the first one is the plan."""
    for start in range(0, len(fds), _AT_ONCE):
        piece = fds[start : start + _AT_ONCE]
        left = len(fds) - start - len(piece)
        numbers = _pack([left, *(number for _, number in piece)])
        rights = _pack([fd for fd, _ in piece])
        control.sendmsg([numbers], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def take(control: socket.socket, *kept: int) -> tuple[int, socket.socket, list[int]] | None:
    """Wait for what `send` sends: the plan's number; the socket and the `kept`, which had to make room.

    None: nobody is there any more who could send it.
    """
    numbers: list[int] = []
    fds: list[int] = []
    left = 1
    while left:
        data, rights, _, _ = control.recvmsg(_INT * (_AT_ONCE + 1), socket.CMSG_SPACE(_INT * _AT_ONCE))
        if not data:
            return None
        left, *piece = _unpack(data)
        numbers += piece
        for _, _, some in rights:
            fds += _unpack(some)
    floor = max(numbers) + 1
    ours, *moved = [_move(fd, floor) for fd in (control.detach(), *kept, *fds)]
    for fd, number in zip(moved[len(kept) :], numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    return numbers[0], socket.socket(fileno=ours), moved[: len(kept)]


def _move(fd: int, floor: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)
    os.close(fd)
    return moved


def _pack(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"{len(numbers)}i", *numbers)


def _unpack(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"{len(data) // _INT}i", data)
