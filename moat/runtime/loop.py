"""What Moat's own long-lived processes run in: their event loop and the limits that they need."""

from __future__ import annotations

import os
import resource
from collections.abc import Coroutine
from typing import Any

import anyio

_FILES = 65536  # a build in a sandbox opens hundreds of connections at once; 1024 has stalled it


def raise_limits() -> None:
    """As many descriptors as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` to its end, on uvloop where it is there and not switched off."""
    options: dict[str, Any] = {}
    if os.environ.get("MOAT_LOOP") != "asyncio":
        try:
            import uvloop
        except ImportError:
            pass  # the loop of the standard library does it too
        else:
            options["loop_factory"] = uvloop.new_event_loop

    async def run() -> None:
        await main

    anyio.run(run, backend_options=options)
