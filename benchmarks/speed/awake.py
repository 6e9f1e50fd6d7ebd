"""Processors that never sleep, for measurements in a virtual machine.

An idle processor of one is taken off the machine below (HLT), and waking it up takes as long as that
machine's other guests let it: 30 us or 200, several times in a request. Loops that the kernel's scheduler
counts as idle (SCHED_IDLE) keep them, as `idle=poll` or `guest_halt_poll_ns` would, and make way at once
for whatever else wants to run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_LOOP = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """As long as the block lasts, or this process."""
    with contextlib.ExitStack() as ends:
        for cpu in os.sched_getaffinity(0):
            loop = ends.enter_context(subprocess.Popen([sys.executable, "-c", _LOOP, str(cpu)]))
            ends.callback(loop.kill)
        yield
