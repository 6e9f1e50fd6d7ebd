"""Listeners on the host that nothing in a sandbox may ever reach; they count who knocks."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import threading
from collections.abc import Iterator

# The limits of core files in every sandbox, soft and hard. 0 where this machine's root may have no other.
CORE = (0, 0) if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 else (1, 1)


class Canary:
    """TCP and UDP on every address of the host, and UDP 53 when it is free."""

    def __init__(self) -> None:
        self.knocks: list[str] = []
        self._sockets: list[socket.socket] = []
        self.tcp = self._open(socket.SOCK_STREAM, 0)
        self.udp = self._open(socket.SOCK_DGRAM, 0)
        self._open(socket.SOCK_DGRAM, 53)
        for sock in self._sockets:
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _open(self, kind: socket.SocketKind, port: int) -> int:
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        self._sockets.append(sock)
        return int(sock.getsockname()[1])

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                if sock.type == socket.SOCK_STREAM:
                    peer, address = sock.accept()
                    self.knocks.append(f"tcp from {address}")
                    with contextlib.suppress(OSError), peer:
                        peer.settimeout(2)
                        peer.recv(1000)
                        peer.sendall(b"HTTP/1.0 200 OK\r\n\r\ncanary")
                else:
                    data, address = sock.recvfrom(2000)
                    if address is None:  # shut down
                        return
                    self.knocks.append(f"udp {sock.getsockname()[1]} from {address}: {data[:60]!r}")
                    sock.sendto(b"canary", address)

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@contextlib.contextmanager
def canary() -> Iterator[Canary]:
    bird = Canary()
    try:
        yield bird
    finally:
        bird.close()


def host_addresses() -> list[str]:
    """Every address of this machine, loopback included, link-local excluded (needs a scope)."""
    links = json.loads(subprocess.run(["ip", "-j", "addr"], check=True, capture_output=True).stdout)
    return [
        info["local"]
        for link in links
        for info in link.get("addr_info", ())
        if info.get("scope") in {"global", "host"}
    ]
