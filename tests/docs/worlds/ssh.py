"""A GitHub on loopback that knows the reader's key, and the reader's key in a file."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.docs.session import Place
from tests.ssh.world import make_key, sshd


@contextlib.contextmanager
def world(place: Place) -> Iterator[None]:
    dot_ssh, moat = place.home / ".ssh", place.home / ".moat"
    dot_ssh.mkdir(mode=0o700)
    moat.mkdir(mode=0o700)
    key = make_key(dot_ssh / "id_ed25519", comment="reader@example.test")
    directory = Path(tempfile.mkdtemp(prefix="md-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        with sshd("github.com", directory / "s", [key]) as server:
            (dot_ssh / "known_hosts").write_text(f"github.com {server.host_key}\n")
            (moat / "config.yaml").write_text(
                f'upstream:\n  connect_to:\n    "github.com:22": "127.0.0.1:{server.port}"\n'
            )
            place.environment.pop("SSH_AUTH_SOCK", None)
            yield
    finally:
        shutil.rmtree(directory)
