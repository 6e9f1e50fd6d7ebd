"""The real Codex in a sandbox, with an API key.

Seen to fail: without `.codex/config.toml` no command of Codex runs (it cannot make a sandbox within the sandbox),
and without its `openai_base_url` the placeholder goes to chatgpt.com, where it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.agents_world import AT, DUMP, Moat, run, with_key_file, workspace
from tests.e2e.claude_world import RUNTIMES, configure
from tests.fakes.openai import API, CHATGPT, FakeOpenAI

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
