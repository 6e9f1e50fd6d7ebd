"""An imported login is taken over anew when Claude Code, or Codex, on this machine has a newer one."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from moat.errors import GrantError, MissingGrantsError
from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.runtime.granted import check
from moat.vault import Vault, imported, open_vault
from moat.vault.imported import ImportedLogins, take_over
from moat.vault.local_login import ClaudeLogin, claude_login

pytestmark = pytest.mark.anyio
OLD, NEW = "sk-ant-oat01-old", "sk-ant-oat01-new"
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def vault(sealed: Home) -> Vault:
    return open_vault(sealed)


def store(vault: Vault, *, ends: dt.timedelta, source: str = "import") -> None:
    now = dt.datetime.now(dt.UTC)
    info = CredentialInfo(
        "anthropic", CredentialKind.OAUTH, ("api.anthropic.com",), now, now + ends, {"source": source}
    )
    vault.put(Credential(info, Secret(OLD)))


def on_the_host(home: Path, token: str, ends: dt.timedelta = HOUR) -> None:
    when = (dt.datetime.now(dt.UTC) + ends).timestamp() * 1000
    (home / ".claude").mkdir(exist_ok=True)
    login = {"accessToken": token, "expiresAt": when, "subscriptionType": "pro", "scopes": ["user:inference"]}
    (home / ".claude/.credentials.json").write_text(json.dumps({"claudeAiOauth": login}))


def test_before_a_run_the_newer_login_is_taken(vault: Vault, home: Path) -> None:
    store(vault, ends=-HOUR)
    on_the_host(home, NEW)
    (info,) = check(vault, ["anthropic"])
    assert not info.expired(dt.datetime.now(dt.UTC))
    found = vault.get("anthropic")
    assert (found.secret, found.info.hosts) == (Secret(NEW), ("api.anthropic.com",))
    assert dict(found.info.metadata) == {
        "source": "import",
        "subscription": "pro",
        "scopes": "user:inference",
    }


@pytest.mark.parametrize("what", ["nothing", "the same", "ended", "no token", "broken"])
def test_without_a_better_one_it_stays_expired(vault: Vault, home: Path, what: str) -> None:
    store(vault, ends=-HOUR)
    if what == "broken":
        (home / ".claude").mkdir()
        (home / ".claude/.credentials.json").write_text(
            '{"claudeAiOauth": {"accessToken": "sk-ant-oat01-new"'
        )
    elif what != "nothing":
        token = {"the same": OLD, "no token": "sk-ant-api03-key"}.get(what, NEW)
        on_the_host(home, token, -HOUR if what == "ended" else HOUR)
    with pytest.raises(MissingGrantsError, match="credential expired: anthropic"):
        check(vault, ["anthropic"])
    assert vault.get("anthropic").secret == Secret(OLD)


def test_what_was_not_imported_is_not_replaced(vault: Vault, home: Path) -> None:
    """Fails without the look at `source`: the user granted another account on purpose."""
    store(vault, ends=-HOUR, source="setup-token")
    on_the_host(home, NEW)
    with pytest.raises(MissingGrantsError):
        check(vault, ["anthropic"])


async def test_in_a_run_it_is_looked_for_when_it_ended_or_was_not_taken(vault: Vault, home: Path) -> None:
    class Rest:
        credential = vault.credential

        def rejected(self, name: str) -> bool:
            raise AssertionError(name)

    noticed: list[tuple[str, str]] = []
    source = ImportedLogins(vault, Rest(), lambda *notice: noticed.append(notice))
    store(vault, ends=HOUR)
    on_the_host(home, NEW)
    assert (await source.credential("anthropic")).secret == Secret(OLD)
    assert not source.rejected("anthropic")
    assert (await source.credential("anthropic")).secret == Secret(NEW)
    assert noticed == [("renewed", "anthropic")]
    store(vault, ends=-HOUR)
    assert (await source.credential("anthropic")).secret == Secret(NEW)
    vault.delete("anthropic")
    with pytest.raises(GrantError, match="no credential 'anthropic'"):
        await source.credential("anthropic")


def test_what_is_revoked_while_the_host_is_looked_at_stays_revoked(
    vault: Vault, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keychain may ask the user first. Seen failing: it was granted again."""
    store(vault, ends=-HOUR)
    on_the_host(home, NEW)

    def slow(now: dt.datetime) -> ClaudeLogin:
        open_vault(Home.from_environment()).delete("anthropic")
        return claude_login(now)

    monkeypatch.setattr(imported, "claude_login", slow)
    assert not take_over(vault, "anthropic")
    assert vault.list() == ()


def codex_on_the_host(home: Path, access: str, account: str = "acc-1", **other: object) -> None:
    (home / ".codex").mkdir(exist_ok=True)
    login = {"tokens": {"access_token": access, "account_id": account}} | other
    (home / ".codex/auth.json").write_text(json.dumps(login))


@pytest.mark.parametrize(
    ("account", "other", "taken"),
    [
        ("acc-1", {}, True),
        ("acc-1", {"auth_mode": "chatgpt", "OPENAI_API_KEY": "sk-unused"}, True),
        ("acc-2", {}, False),  # another account than the one that was granted
        ("acc-1", {"auth_mode": "apikey"}, False),
        ("acc-1", {"OPENAI_API_KEY": "sk-key"}, False),
    ],
)
def test_of_codex_the_same_account_is_taken(
    vault: Vault, home: Path, account: str, other: dict[str, object], taken: bool
) -> None:
    """Fails without the comparison of accounts: a run would act as somebody whom nobody has granted."""
    now = dt.datetime.now(dt.UTC)
    facts = {"source": "import", "account": "acc-1"}
    info = CredentialInfo("openai", CredentialKind.OAUTH, ("chatgpt.com",), now, now - HOUR, facts)
    vault.put(Credential(info, Secret("old")))
    codex_on_the_host(home, "new", account, **other)
    if taken:
        (found,) = check(vault, ["openai"])
        assert found.hosts == ("chatgpt.com",)
    else:
        with pytest.raises(MissingGrantsError):
            check(vault, ["openai"])
    assert vault.get("openai").secret == Secret("new" if taken else "old")
