"""Stand-ins for the official images, which cannot be pulled everywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from moat.paths import Home
from moat.runtime.confirmed import confirm
from moat.runtime.demands import Demand
from tests.docs.session import Place
from tests.runtime.stand_ins import stand_in


@contextlib.contextmanager
def world(place: Place) -> Iterator[None]:
    for name, shown in {"postgres": "postgres:17-bookworm", "redis": "redis:7-bookworm"}.items():
        place.instead[shown] = stand_in(name)
        # The reader's are the official ones, about which nobody is asked.
        confirm(
            Home(place.home / ".moat"), place.workspace, [Demand("image", f"{stand_in(name)} for {name}")]
        )
    yield
