"""`moat grant codex --method import`: the ChatGPT login of Codex, its key, or neither."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.grants import CredentialKind
from moat.paths import Home
from moat.vault import open_vault
from tests.fakes.openai import ACCOUNT, identity, token
from tests.vault.conftest import traces

Moat = Callable[..., subprocess.CompletedProcess[str]]
REFRESH = "rt_real-refresh-token"


@pytest.fixture(autouse=True)
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))


def on_the_host(home: Path, *, life: float = 3600, **changes: object) -> str:
    """What Codex has written. Returns the access token."""
    access = token(exp=int(time.time() + life))
    tokens = {"id_token": identity(), "access_token": access, "refresh_token": REFRESH, "account_id": ACCOUNT}
    (home / ".codex").mkdir(exist_ok=True)
    login = {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens} | changes
    (home / ".codex/auth.json").write_text(json.dumps(login))
    return access


def grant(moat: Moat) -> subprocess.CompletedProcess[str]:
    return moat("grant", "codex", "--method", "import", "--no-validate")


def test_a_login_is_taken_without_what_renews_it(moat: Moat, home: Path) -> None:
    access = on_the_host(home)
    done = grant(moat)
    assert "The login goes to chatgpt.com and nowhere else." in done.stdout, done.stderr
    assert done.stdout.endswith("ChatGPT login saved to ~/.moat/credentials/openai.enc\n")
    found = open_vault(Home.from_environment()).get("openai")
    assert (found.secret.reveal(), found.info.kind, found.info.hosts) == (
        access,
        CredentialKind.OAUTH,
        ("chatgpt.com",),
    )
    assert found.info.expires_at is not None
    assert dict(found.info.metadata) == {
        "source": "import",
        "account": ACCOUNT,
        "login": "octocat@example.test",
        "plan": "pro",
    }
    assert traces(REFRESH, home / ".moat") == traces(access, home / ".moat") == []


def test_without_a_login_that_can_be_used_nothing_is_stored(moat: Moat, home: Path) -> None:
    on_the_host(home, life=-60)
    ended = grant(moat)
    assert "the ChatGPT login of the Codex on this machine expired at" in ended.stderr
    assert "hint: run `codex` on this machine" in ended.stderr
    on_the_host(home, tokens={"access_token": "opaque"})
    assert "does not say which account it is for" in grant(moat).stderr
    (home / ".codex/auth.json").write_text('{"tokens": {"access_token": "REAL')
    broken = grant(moat)
    assert ("is not JSON" in broken.stderr, "REAL" in broken.stderr) == (True, False)
    on_the_host(home, tokens=None)
    assert "no tool on this machine has a login for openai" in grant(moat).stderr
    assert json.loads(moat("grant", "list", "--json").stdout) == []


def test_a_key_stays_a_key(moat: Moat, home: Path) -> None:
    on_the_host(home, auth_mode="apikey", OPENAI_API_KEY="sk-proj-of-codex")
    assert grant(moat).returncode == 0
    found = open_vault(Home.from_environment()).get("openai")
    assert (found.secret.reveal(), found.info.hosts) == ("sk-proj-of-codex", ("api.openai.com",))
