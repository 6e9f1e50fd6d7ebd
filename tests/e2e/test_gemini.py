"""The real Gemini CLI in a sandbox, with an API key and with the Google login of the host.

Seen to fail: without `folderTrust` in its settings the CLI does not start; without the `LoginRule` of `Gemini.logins`
the stand-in's answer to a renewal (or its refusal of the placeholder) reaches the sandbox.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.agents_world import AT, DUMP, Moat, run, with_key_file, workspace
from tests.e2e.claude_world import configure
from tests.fakes.google import API, ASSIST, LOGIN, SCOPES, FakeGoogle

# Of the containers of the suite none has Node; the host's is seen by embedded sandboxes.
pytestmark = [pytest.mark.timeout(300), pytest.mark.embedded]
KEY = "AIza" + "real7" * 7
# It starts itself a second time for more memory; one process starts in half the time.
GEMINI = f"GEMINI_CLI_NO_RELAUNCH=true node {AT}/gemini.js -m gemini-2.5-flash"
FILE = "~/.gemini/oauth_creds.json"


@pytest.fixture
def fake(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGoogle]:
    with_key_file(home, monkeypatch)
    (tmp_path / "vendor").mkdir()
    with FakeGoogle(tmp_path / "vendor").serve() as fake:
        configure(home, fake)
        yield fake


def test_gemini_works_with_an_api_key_that_the_sandbox_does_not_have(
    moat: Moat, fake: FakeGoogle, tmp_path: Path, gemini_script: str
) -> None:
    fake.api_key = KEY
    done = moat("grant", "gemini", "--token-stdin", input=KEY)
    assert "Token is valid." in done.stdout, done.stderr
    place = workspace(tmp_path, gemini_script)
    said = run(moat, "gemini", "embedded", f"{GEMINI} -p 'say hi' && {{ {DUMP}; }}")
    assert "You said: say hi\n" in said
    dump = (place / "dump").read_text(errors="replace")
    assert "GEMINI_API_KEY=AIzamoat" in dump
    assert KEY not in dump + said
    assert {(one.status, one.credential) for one in fake.answered(API)} == {(200, KEY)}
    assert not any("AIzamoat" in text for text in fake.seen), "a placeholder left the machine"


def test_gemini_works_with_the_login_of_the_host_and_renews_placeholders(
    moat: Moat, fake: FakeGoogle, home: Path, tmp_path: Path, gemini_script: str
) -> None:
    """The login of the host has ended, and so, for the CLI, has its placeholder: both are renewed, apart."""
    fake.access, fake.refresh = "ya29.real-ended", "1//real-refresh-0123456789"
    login = {
        "access_token": fake.access,
        "refresh_token": fake.refresh,
        "scope": SCOPES,
        "token_type": "Bearer",
        "expiry_date": int((time.time() - 60) * 1000),
    }
    (home / ".gemini").mkdir()
    (home / ".gemini" / "oauth_creds.json").write_text(json.dumps(login))
    done = moat("grant", "gemini", "--method", "import", "--no-validate")
    assert done.returncode == 0, done.stderr
    place = workspace(tmp_path, gemini_script)
    ended = f'sed -i \'s/"expiry_date": [0-9]*/"expiry_date": 1000/\' {FILE}'
    said = run(
        moat, "gemini", "embedded", f"{ended}; {GEMINI} --yolo -p 'FAKE_SHELL {DUMP}; id -un'; cat {FILE}"
    )
    assert "Output: agent\n" in said
    kept = json.loads(said[said.rindex("{") :])
    assert kept["expiry_date"] / 1000 > time.time() + 300 * 24 * 3600, "it was not renewed"
    assert "moat-placeholder" in kept["access_token"]
    assert "moat-placeholder" in kept["refresh_token"]
    dump = (place / "dump").read_text(errors="replace") + said
    for real in (fake.access, fake.refresh, "real-ended"):
        assert real not in dump
    assert fake.renewals == 1, "the host renews its login once, whatever the tool does"
    assert {(one.status, one.credential) for one in fake.answered(ASSIST)} == {(200, f"Bearer {fake.access}")}
    assert [one.path for one in fake.answered(LOGIN)] == ["/token"]
    assert not any("moat-placeholder" in text for text in fake.seen), "a placeholder left the machine"
