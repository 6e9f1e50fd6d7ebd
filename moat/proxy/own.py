"""Whether an address is this machine's own. The kernel is asked; no packet leaves and no name is resolved.

A machine may have public addresses. What listens there on every interface, behind a firewall that guards the
way from outside, is as much inside as what listens on loopback: from here the kernel leads there by loopback.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

_ANY_PORT = 9  # discard; nothing is sent
_SPENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def is_own(address: str) -> bool:
    """Whether what is sent there stays on this machine. Raises OSError when that cannot be asked."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, _ANY_PORT))
            # Who would send from the address that it sends to, sends to itself.
            return ip_address(sock.getsockname()[0]) == ip_address(address)
    except OSError as error:
        if error.errno in _SPENT:  # a moment later there may be what a connection takes
            raise
        return False  # no way leads there
