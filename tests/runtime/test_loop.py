"""What Moat's long-lived processes run in."""

from __future__ import annotations

import subprocess
import sys

# Half a megabyte is what a piece of a body takes; seven copies of it exist at one time.
PIECES = """
import resource, sys
from moat.runtime.loop import keep_freed_memory

def pieces():
    for _ in range(50):
        held = [b"x" * 500_000 for _ in range(7)]
        del held

if sys.argv[1] == "kept":
    keep_freed_memory()
pieces()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
pieces()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", PIECES, how], capture_output=True, text=True, check=True, timeout=20
    )
    return int(ran.stdout)


def test_memory_for_bodies_is_not_fetched_from_the_kernel_again_and_again():
    """Without `keep_freed_memory` each piece is given back and faulted in anew: some 35,000 pages here."""
    assert faults("kept") < 1_000
    assert faults("given back") > 10_000


_NO_DESCRIPTOR = """
import os, resource, types
import anyio
from moat.runtime import gateway

gateway._MOMENT = 0.01

async def main():
    await anyio.to_thread.run_sync(int)  # the thread is there
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    await gateway.Gateway.get_ready(types.SimpleNamespace())
    for fd in held:
        os.close(fd)
    import moat.proxy.server

anyio.run(main)
"""


def test_imports_that_find_no_descriptor_left_do_not_end_the_run() -> None:
    subprocess.run([sys.executable, "-c", _NO_DESCRIPTOR], check=True, timeout=60)
