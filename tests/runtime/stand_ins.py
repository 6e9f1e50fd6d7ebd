"""Images that stand in for the official ones of services: Debian's own servers behind the same contract."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

_PLACE = Path(__file__).parent / "services"


@functools.cache
def stand_in(name: str) -> str:
    """The tag of the stand-in for `postgres`, `redis` or `mysql`; the builder's cache makes it quick."""
    tag = f"moat-test-{name}:1"
    command = ["docker", "build", "-q", "--force-rm", "--target", name, "-t", tag, str(_PLACE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return tag
