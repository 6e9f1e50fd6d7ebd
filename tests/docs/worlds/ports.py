"""A port of its own for the gateway, which is ended afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator

from tests.docs.session import Place
from tests.docs.worlds.getting_started import free_port


@contextlib.contextmanager
def world(place: Place) -> Iterator[None]:
    port = free_port()
    place.instead["8443"] = str(port)
    place.environment["MOAT_ENDPOINT_PORT"] = str(port)
    try:
        yield
    finally:
        about = json.loads((place.home / ".moat/endpoints/gateway.json").read_bytes())
        with contextlib.suppress(ProcessLookupError):
            os.kill(about["pid"], signal.SIGKILL)
