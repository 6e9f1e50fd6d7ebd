"""What the tests' own peers owe to the suite."""

from __future__ import annotations

import gc
import socket
import time

import pytest

from tests.proxy.peers import Wire, world


def test_a_socket_that_is_reset_before_tls_is_closed() -> None:
    """Seen failing with Python's own class: the garbage collector closed it, and a whole suite failed of that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = Wire(socket.create_connection(listener.getsockname()))
        sock, _ = listener.accept()
    wire = Wire(sock)
    peer.reset()
    time.sleep(0.1)
    with pytest.raises(ConnectionResetError):
        wire.tls(world().context("api.test"), None, server=True)
    wire.close()
    gc.collect()
