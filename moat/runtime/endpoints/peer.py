"""Which user of this machine a connection on loopback comes from.

Loopback belongs to everybody who is logged in, and what an agent serves is nobody else's business. TCP does
not tell who connects; the kernel's table of connections does.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

_TABLES = {socket.AF_INET: "/proc/self/net/tcp", socket.AF_INET6: "/proc/self/net/tcp6"}


def owner(sock: socket.socket) -> int | None:
    """The uid of whoever holds the other end of an accepted connection; None: nobody does any more.

    A client that has closed its end, to have its request done unseen, has no owner either.
    """
    with suppress(OSError, ValueError):
        theirs, ours = _hex(sock.getpeername()), _hex(sock.getsockname())
        with open(_TABLES[sock.family], encoding="ascii") as table:
            return _find(table, theirs, ours)
    return None


def _find(table: Iterable[str], local: str, remote: str) -> int | None:
    """The columns are: number, local and remote address, state, queues, timer, retransmits, uid, …, inode."""
    for line in table:
        if local in line:
            fields = line.split()
            if fields[1:3] == [local, remote] and fields[9] != "0":
                return int(fields[7])
    return None


def _hex(address: tuple[str | int, ...]) -> str:
    """As the kernel prints an address: its words in the machine's byte order, and the port."""
    family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
    packed = socket.inet_pton(family, str(address[0]))
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{int(address[1]):04X}"
