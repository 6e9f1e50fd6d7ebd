"""The real Codex in a sandbox, with an API key and with the ChatGPT login of the host.

Seen to fail: without `.codex/config.toml` no command of Codex runs (it cannot make a sandbox within the sandbox),
and without its `openai_base_url` the placeholder goes to chatgpt.com, where it is refused. With `openai` left out of
`moat.vault.imported` the login that the host has renewed stays unknown to the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moat.journal.entry import entries
from tests.e2e.agents_world import AT, DUMP, Moat, run, with_key_file, workspace
from tests.e2e.claude_world import RUNTIMES, configure
from tests.fakes.openai import ACCOUNT, API, CHATGPT, LOGIN, FakeOpenAI, token

pytestmark = pytest.mark.timeout(300)
KEY = "sk-proj-real" + "5" * 60


@pytest.fixture
def fake(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    with_key_file(home, monkeypatch)
    (tmp_path / "vendor").mkdir()
    with FakeOpenAI(tmp_path / "vendor", api_key=KEY).serve() as fake:
        configure(home, fake)
        yield fake


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_codex_works_with_an_api_key_that_the_sandbox_does_not_have(
    moat: Moat, fake: FakeOpenAI, tmp_path: Path, codex_binary: str, runtime: str
) -> None:
    done = moat("grant", "codex", "--token-stdin", input=KEY)
    assert "Token is valid." in done.stdout, done.stderr
    place = workspace(tmp_path, codex_binary)
    said = run(moat, "codex", runtime, f"{AT}/codex exec 'FAKE_SHELL {DUMP}; id -un' 2>&1")
    assert "\nThe tool said:" in said
    assert "\nagent\n" in said, "the command that the model asked for did not run"
    assert "ERROR" not in said
    dump = (place / "dump").read_text(errors="replace")
    assert "OPENAI_API_KEY=sk-proj-moat" in dump
    assert KEY not in dump + said
    asked = fake.answered(API)
    assert {(one.status, one.authorization) for one in asked} == {(200, f"Bearer {KEY}")}
    assert {one.protocol for one in asked if one.path == "/v1/responses"} == {"websocket"}
    assert not any(one.authorization for one in fake.answered(CHATGPT)), "the key is the API's alone"
    assert not any("sk-proj-moat" in text for text in fake.seen), "a placeholder left the machine"


def on_the_host(home: Path, fake: FakeOpenAI) -> None:
    """Codex logs in, or renews its login."""
    place = home / ".codex" / "auth.json"
    place.parent.mkdir(exist_ok=True)
    tokens = fake.new_login() | {"account_id": ACCOUNT}
    place.write_text(json.dumps({"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens}))


@pytest.mark.embedded
def test_codex_works_with_the_login_of_the_host_and_with_what_becomes_of_it(
    moat: Moat, fake: FakeOpenAI, home: Path, tmp_path: Path, codex_binary: str
) -> None:
    """The login that was granted is good no longer: the run takes over what Codex on the host has by now.

    For Codex in the sandbox its placeholder has ended: it renews that, and gets a placeholder.
    """
    on_the_host(home, fake)
    done = moat("grant", "codex", "--method", "import")
    assert "Authenticated as octocat@example.test." in done.stdout, done.stderr
    first = fake.access, fake.refresh
    on_the_host(home, fake)
    place = workspace(tmp_path, codex_binary)
    ended = token(exp=1000)
    script = f'sed -i \'s/"access_token": "[^"]*/"access_token": "{ended}/\' ~/.codex/auth.json; '
    script += f"{AT}/codex exec 'FAKE_SHELL {DUMP}; id -un' 2>&1; cp ~/.codex/auth.json kept"
    said = run(moat, "codex", "embedded", script)
    assert "\nagent\n" in said, said
    kept = json.loads((place / "kept").read_text())
    assert kept["tokens"]["account_id"] == ACCOUNT
    assert "moat-placeholder" in kept["tokens"]["access_token"]
    assert "moat-placeholder" in kept["tokens"]["refresh_token"]
    dump = (place / "dump").read_text(errors="replace") + said
    for real in (*first, fake.access, fake.refresh):
        assert real not in dump
    assert "OPENAI_API_KEY=" not in dump, "Codex would take it for a key"
    assert not fake.answered(LOGIN), "Codex's refresh token is good for one use, and Codex's"
    models = [one for one in fake.answered(CHATGPT) if one.path == "/backend-api/codex/responses"]
    assert {(one.status, one.authorization) for one in models} == {(200, f"Bearer {fake.access}")}
    assert not any("moat-placeholder" in text for text in fake.seen), "a placeholder left the machine"
    assert {("login.renewed", "renewed"), ("login.answered", "renewed")} <= set(events(home))


def events(home: Path) -> list[tuple[str, object]]:
    found = [entry for path in home.glob(".moat/runs/*/journal.jsonl") for entry in entries(path)]
    return [(entry.event, entry.data.get("outcome")) for entry in found]
