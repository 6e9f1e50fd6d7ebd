"""Other tools' credentials on this machine: Claude Code's file, the login of gh."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from moat.errors import GrantError
from moat.vault.local_login import claude_login, gh_token

NOW = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
LOGIN = {
    "accessToken": "sk-ant-oat01-LOCALSECRET",
    "refreshToken": "sk-ant-ort01-REFRESH",
    "expiresAt": 1771151400000,  # 2026-02-15T10:30:00Z
    "scopes": ["user:inference", "user:profile"],
    "subscriptionType": "claude_pro",
    "rateLimitTier": "default_claude_max_20x",
}


def write(home: Path, value: object, directory: str = ".claude") -> Path:
    path = home / directory / ".credentials.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_file_of_claude_code(home: Path) -> None:
    write(home, {"claudeAiOauth": LOGIN, "mcpOAuth": {}})
    login = claude_login(NOW)
    assert login.token.reveal() == "sk-ant-oat01-LOCALSECRET"
    assert login.subscription == "claude_pro"
    assert login.expires_at == dt.datetime(2026, 2, 15, 10, 30, tzinfo=dt.UTC)
    assert login.scopes == ("user:inference", "user:profile")
    assert login.rate_limit_tier == "default_claude_max_20x"
    assert "LOCALSECRET" not in repr(login)


def test_a_bare_login(home: Path) -> None:
    write(home, {"claudeAiOauth": {"accessToken": "sk-ant-oat01-x"}})
    login = claude_login(NOW)
    assert (login.subscription, login.expires_at, login.scopes) == ("", None, ())


def test_the_directory_can_be_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, {"claudeAiOauth": LOGIN}, "other")
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(home / "other"))
    assert claude_login(NOW).subscription == "claude_pro"


def test_expired(home: Path) -> None:
    write(home, {"claudeAiOauth": LOGIN})
    with pytest.raises(GrantError, match="expired at 2026-02-15T10:30:00Z") as caught:
        claude_login(dt.datetime(2026, 2, 15, 10, 30, tzinfo=dt.UTC))
    assert "run `claude` on this machine" in str(caught.value.hint)


@pytest.mark.parametrize("value", [None, {}, {"claudeAiOauth": {}}, {"claudeAiOauth": {"accessToken": ""}}])
def test_none(home: Path, value: object) -> None:
    if value is not None:
        write(home, value)
    with pytest.raises(GrantError, match="No Claude Code credentials found") as caught:
        claude_login(NOW)
    assert caught.value.hint is not None
    install, key = caught.value.hint.splitlines()
    assert install == "install Claude Code and log in, then run `moat grant anthropic` again"
    assert 'export ANTHROPIC_API_KEY="sk-ant-..." && moat grant anthropic' in key


@pytest.mark.parametrize(
    "value",
    [
        '{"claudeAiOauth": {"accessToken": "sk-ant-oat01-LOCALSECRET"',
        [1],
        {"claudeAiOauth": "sk-ant-oat01-LOCALSECRET"},
        {"claudeAiOauth": LOGIN | {"expiresAt": "soon"}},
        {"claudeAiOauth": LOGIN | {"expiresAt": 1e300}},
        {"claudeAiOauth": LOGIN | {"scopes": 7}},
    ],
)
def test_what_cannot_be_understood(home: Path, value: object) -> None:
    path = write(home, value)
    with pytest.raises(GrantError, match="is not what Claude Code writes") as caught:
        claude_login(NOW)
    assert str(path) in str(caught.value)
    assert "LOCALSECRET" not in str(caught.value)
    assert caught.value.__suppress_context__


def gh(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/gh"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gh itself would answer with the variable; it is not handed on."""
    gh(
        tmp_path,
        'test "$*" = "auth token --hostname github.com" && echo "gho_own$GH_TOKEN$GITHUB_TOKEN"',
        monkeypatch,
    )
    monkeypatch.setenv("GH_TOKEN", "ghp_variable")
    token = gh_token()
    assert token is not None
    assert token.reveal() == "gho_own"


def test_gh_gets_no_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gh(tmp_path, 'echo "gho_${MOAT_PASSPHRASE-none}"', monkeypatch)
    monkeypatch.setenv("MOAT_PASSPHRASE", "horse")
    token = gh_token()
    assert token is not None
    assert token.reveal() == "gho_none"


def test_gh_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gh(tmp_path, "echo no oauth token >&2; exit 1", monkeypatch)
    assert gh_token() is None


def test_no_gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gh_token() is None
