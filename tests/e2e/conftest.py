"""A user who has granted, and the API that knows the credential: `world`."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.claude_world import PREFIX, World, configure
from tests.fakes.anthropic import FakeAnthropic


@pytest.fixture
def kind() -> str:
    """Which kind of credential; a test may parametrize it."""
    return "api-key"


@pytest.fixture
def world(
    request: pytest.FixtureRequest, kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    moat_bin, claude_binary = (request.getfixturevalue(name) for name in ("moat_bin", "claude_binary"))
    secret = PREFIX[kind] + "real" + secrets.token_hex(24)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "claude").symlink_to(Path(claude_binary).resolve())
    key_file = home / "key"
    key_file.write_bytes(base64.b64encode(secrets.token_bytes(32)))
    key_file.chmod(0o600)
    for name, value in {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "MOAT_KEYRING_BACKEND": "file",
        "MOAT_KEY_FILE": str(key_file),
        "LANG": "C.UTF-8",
    }.items():
        monkeypatch.setenv(name, value)
    workspace = tmp_path / "project"
    workspace.mkdir()
    accepted = {"api_key": secret} if kind == "api-key" else {"oauth_token": secret}
    with FakeAnthropic(**accepted) as fake:
        configure(home, fake)
        world = World(moat_bin, home, workspace, fake, secret, kind, dict(os.environ))
        done = world.moat("grant", "anthropic", "--token-stdin", "--no-validate", input=secret + "\n")
        assert done.returncode == 0, done.stderr
        yield world
