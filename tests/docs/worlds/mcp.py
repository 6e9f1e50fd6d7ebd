"""A free port for the reader's own server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.docs.session import Place
from tests.docs.worlds.getting_started import free_port


@contextlib.contextmanager
def world(place: Place) -> Iterator[None]:
    place.instead["8931"] = str(free_port())
    yield
