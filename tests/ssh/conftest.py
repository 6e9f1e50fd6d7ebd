"""One world of SSH servers for all tests of this directory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ssh.world import SshWorld, ssh_world


@pytest.fixture(scope="session")
def ssh(moat_bin: str) -> Iterator[SshWorld]:
    directory = Path(tempfile.mkdtemp(prefix="ms-", dir="/tmp"))  # short: there are sockets in it
    directory.chmod(0o755)
    try:
        with ssh_world(directory, moat_bin) as world:
            yield world
    finally:
        shutil.rmtree(directory, ignore_errors=True)
