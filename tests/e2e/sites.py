"""Python packages of the tests for the Python of a sandbox."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from tests.conftest import REPOSITORY

BASE = "3.11"  # of the base image, Debian 12


def site(runtime: str) -> Path:
    """Where the packages are: this machine's own, or as compiled for another Python by `.ci/test`."""
    if runtime == "embedded" or sysconfig.get_python_version() == BASE:
        return Path(sysconfig.get_path("purelib"))
    found = REPOSITORY / f".cache/site-{BASE}"
    assert found.is_dir(), f"no packages for Python {BASE}: run `bash .ci/test`"
    return found.resolve()
