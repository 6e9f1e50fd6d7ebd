"""Stand-ins for the official images, which cannot be pulled everywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.docs.session import Place
from tests.runtime.stand_ins import stand_in


@contextlib.contextmanager
def world(place: Place) -> Iterator[None]:
    for name, shown in {"postgres": "postgres:17-bookworm", "redis": "redis:7-bookworm"}.items():
        place.instead[shown] = stand_in(name)
    yield
