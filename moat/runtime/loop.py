"""The event loop of Moat's own processes: uvloop where it is there, and not switched off."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import Any

import anyio


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` to its end."""
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
