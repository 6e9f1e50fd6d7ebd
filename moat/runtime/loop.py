"""What Moat's own long-lived processes run in: their event loop, and the limits and memory that they need."""

from __future__ import annotations

import os
import resource
from collections.abc import Coroutine
from typing import Any

import anyio

_FILES = 65536  # a build in a sandbox opens hundreds of connections at once; 1024 has stalled it
# glibc's `mallopt`: names and numbers of <malloc.h>. A body passes in pieces of up to half a megabyte.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_FREE_BYTES = 8 << 20
_MAPPED_BYTES = 1 << 20


def raise_limits() -> None:
    """As many descriptors as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keep_freed_memory() -> None:
    """Have the C library keep up to 8 MiB that are free, where it is glibc.

    It would give the buffers of each piece of a body back to the kernel, and get them anew, page by page
    and zeroed, for the next: 600 page faults per megabyte, up to two fifths of a download.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _FREE_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


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
