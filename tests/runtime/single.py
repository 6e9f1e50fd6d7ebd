"""Tests that need a process with one thread: a worker of the suite has more (pytest-xdist's)."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any


def single_threaded(test: Callable[..., None]) -> Callable[..., None]:
    """Carry `test` out in a fork of this process, which has only the thread that forked."""

    @functools.wraps(test)
    def in_a_fork(**fixtures: Any) -> None:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                test(**fixtures)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0, "what was wrong is below, as its stderr"

    return in_a_fork
