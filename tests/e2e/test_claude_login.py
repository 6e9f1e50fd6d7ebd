"""Claude Code renews a login of its own accord: it gets placeholders, keeps working, and no token comes in.

Seen to fail: without `LoginRule` (`Anthropic.logins` returning nothing) the fake's answer to the renewal is in the
sandbox; with `ImportedLogins` left out a login that was renewed on the host stays unknown to the run.
"""

from __future__ import annotations

import datetime as dt
import json
import time

import pytest

from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.journal.entry import entries
from moat.paths import Home
from moat.vault import open_vault
from tests.e2e.claude_world import RUNTIMES, World

pytestmark = pytest.mark.timeout(300)
FILE = "~/.claude/.credentials.json"


def bash(command: str) -> str:
    return "FAKE_TOOL Bash " + json.dumps({"command": command})


@pytest.fixture
def kind() -> str:
    return "oauth"


def store(world: World, token: str, **metadata: str) -> None:
    now = dt.datetime.now(dt.UTC)
    info = CredentialInfo(
        "anthropic", CredentialKind.OAUTH, ("api.anthropic.com",), now, now + dt.timedelta(days=9), metadata
    )
    open_vault(Home(world.home / ".moat")).put(Credential(info, Secret(token)))


def login_of_the_host(world: World, token: str) -> None:
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(hours=8)
    login = {
        "accessToken": token,
        "refreshToken": "sk-ant-ort01-of-the-host",
        "expiresAt": ends.timestamp() * 1000,
    }
    place = world.home / ".claude" / ".credentials.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({"claudeAiOauth": login}))


def told(world: World, event: str) -> list[dict[str, object]]:
    found = [e for path in world.home.glob(".moat/runs/*/journal.jsonl") for e in entries(path)]
    return [dict(e.data) for e in found if e.event == event]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_login_that_has_ended_is_renewed_without_a_token_coming_in(world: World, runtime: str) -> None:
    inside = (
        f'sed -i \'s/"expiresAt": [0-9]*/"expiresAt": 1000/\' {FILE}; grep -c \'"expiresAt": 1000\' {FILE}; '
        f"env -u CLAUDECODE claude -p inner 2>&1; cat {FILE}"
    )
    said = world.answer("-p", bash(inside), runtime=runtime, timeout=200)
    _, answer, file = said.splitlines()
    assert answer == "You said: inner (prompt 1)"
    login = json.loads(file)["claudeAiOauth"]
    assert "moat-placeholder" in login["accessToken"]
    assert "moat-placeholder" in login["refreshToken"]
    assert login["expiresAt"] / 1000 > time.time() + 300 * 24 * 3600, "it was not renewed"
    assert [r.path for r in world.fake.received if r.path.startswith("/v1/oauth/token")] == []
    (answered,) = told(world, "login.answered")
    assert (answered["host"], answered["outcome"]) == ("platform.claude.com", "renewed")


@pytest.mark.embedded
def test_an_imported_login_that_the_host_has_renewed_is_taken_over(world: World) -> None:
    """The API takes the new token only: Claude Code meets a 401, asks for a renewal, and goes on."""
    store(world, "sk-ant-oat01-" + "old" * 20, source="import")
    login_of_the_host(world, world.secret)
    assert world.answer("-p", "hello", runtime="embedded") == "You said: hello (prompt 1)"
    assert [one["outcome"] for one in told(world, "login.renewed")] == ["renewed"]
    vault = open_vault(Home(world.home / ".moat"))
    assert vault.get("anthropic").secret.reveal() == world.secret
    for place in world.home.glob(".moat/runs/*/*"):
        assert place.is_dir() or world.secret.encode() not in place.read_bytes(), place


@pytest.mark.embedded
def test_a_credential_that_was_revoked_ends_quickly_and_says_how_to_go_on(world: World) -> None:
    store(world, "sk-ant-oat01-" + "revoked" * 9)
    done = world.claude("-p", "hello", runtime="embedded")
    assert done.returncode == 1
    assert "could not be refreshed" in done.stdout
    assert done.stderr.splitlines() == [
        "moat: warning: api.anthropic.com does not take the credential anthropic (401): `moat grant anthropic`",
        "moat: api.anthropic.com answered 401 to 3 requests with the credential anthropic: it is not valid there",
        "moat: hint: moat grant anthropic",
    ]
    (answered,) = told(world, "login.answered")
    assert answered["outcome"] == "lost"
