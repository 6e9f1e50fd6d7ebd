"""The clone in `~/moat`, and a port for the stand-in."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from tests.conftest import REPOSITORY
from tests.docs.session import Place


@contextlib.contextmanager
def world(place: Place) -> Iterator[None]:
    (place.home / "moat").symlink_to(REPOSITORY)
    place.instead["8443"] = str(free_port())
    yield


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
