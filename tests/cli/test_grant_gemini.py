"""The Google login of the Gemini CLI: imported, renewed on the host, and never in the sandbox.

Google is played by a TLS server that knows the refresh token and the access token that it gave last.

Seen to fail: with its `LoginRule` not shared the renewal of another login is refused; with `is_login` always false the whole stored
login is put on the request in place of its access token.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from moat.journal.entry import entries
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.oauth.tokens import Tokens
from tests.vault.conftest import traces
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
REFRESH, ACCESS = "1//REAL-refresh-token", "ya29.REAL-access-token"
HOSTS = ("oauth2.googleapis.com", "cloudcode-pa.googleapis.com")
SCOPE = "https://www.googleapis.com/auth/cloud-platform openid"


class Google:
    def __init__(self) -> None:
        self.given = 0
        self.life = 3599
        self.foreign: list[str] = []

    def __call__(self, asked: Asked) -> Answer:
        if asked.host == "cloudcode-pa.googleapis.com":
            good = asked.headers.get("authorization") == f"Bearer {ACCESS}-{self.given}"
            return (200, {"tier": "free"}) if good else (401, {})
        form = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
        if asked.path != "/token" or form.get("refresh_token") != REFRESH:
            self.foreign.append(f"{asked.path} {form.get('refresh_token')}")
            return 400, {"error": "invalid_grant"}
        assert form["client_id"].endswith(".apps.googleusercontent.com")
        assert "resource" not in form
        self.given += 1
        return 200, {
            "access_token": f"{ACCESS}-{self.given}",
            "expires_in": self.life,
            "token_type": "Bearer",
            "scope": SCOPE,
            "id_token": "eyJ.REAL-id-token",
        }


@pytest.fixture
def google() -> Google:
    return Google()


@pytest.fixture
def vendors(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, google: Google) -> Iterator[Vendor]:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    login(home)
    with vendor(tmp_path / "vendor", google, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        yield server


def login(home: Path, **changes: object) -> None:
    """What the CLI of the user has written, an hour and more ago."""
    (home / ".gemini").mkdir(exist_ok=True)
    data = {"access_token": "ya29.old", "refresh_token": REFRESH, "scope": SCOPE, "token_type": "Bearer"}
    data |= {"expiry_date": (time.time() - 60) * 1000} | changes
    (home / ".gemini/oauth_creds.json").write_text(json.dumps(data))


INSIDE = r"""
file=~/.gemini/oauth_creds.json
access=$(sed 's/.*"access_token": "\([^"]*\)".*/\1/' $file); refresh=$(sed 's/.*"refresh_token": "\([^"]*\)".*/\1/' $file)
curl -sS -X POST -H "Authorization: Bearer $access" https://oauth2.googleapis.com/tokeninfo; echo
curl -sS -d "grant_type=refresh_token&refresh_token=$refresh" https://oauth2.googleapis.com/token; echo
curl -sS -d "grant_type=refresh_token&refresh_token=1//of-another-login" https://oauth2.googleapis.com/token; echo
curl -sS -X POST -H "Authorization: Bearer $access" https://cloudcode-pa.googleapis.com/v1internal:loadCodeAssist; echo
sleep 2
curl -sS -X POST -H "Authorization: Bearer $access" https://cloudcode-pa.googleapis.com/v1internal:loadCodeAssist; echo
cat $file; echo; cat ~/.gemini/settings.json; echo; env | grep -c GEMINI
"""


@pytest.mark.embedded
def test_a_login_is_renewed_on_the_host_and_used_from_the_sandbox(
    moat: Moat, vendors: Vendor, google: Google, home: Path
) -> None:
    google.life = 2  # so short that it has to be renewed in the run
    done = moat("grant", "gemini", "--method", "import")
    assert done.returncode == 0, done.stderr
    assert (
        "The login goes to cloudcode-pa.googleapis.com and nowhere else; oauth2.googleapis.com renews it."
        in done.stdout
    )
    assert done.stdout.endswith("Google login saved to ~/.moat/credentials/gemini.enc\n")
    stored = open_vault(Home.from_environment()).get("gemini")
    assert (Tokens.decode(stored.secret, "gemini").refresh, stored.info.expires_at) == (REFRESH, None)

    run = moat("run", "--runtime", "embedded", "-g", "gemini", "--", "sh", "-c", INSIDE)
    about, renewed, foreign, first, second, file, settings, _ = run.stdout.splitlines()
    placeholders = json.loads(file)
    assert json.loads(about) == {"scope": SCOPE, "expires_in": 365 * 24 * 3600}
    assert json.loads(renewed)["access_token"] == placeholders["access_token"]
    assert json.loads(renewed)["refresh_token"] == placeholders["refresh_token"]
    assert json.loads(foreign) == {"error": "invalid_grant"}  # from Google itself
    assert (first, second) == ('{"tier": "free"}', '{"tier": "free"}')
    assert json.loads(settings)["security"]["auth"]["selectedType"] == "oauth-personal"
    assert "REAL" not in run.stdout + run.stderr
    assert google.foreign == ["/token 1//of-another-login"]  # nothing else of the sandbox's came here
    assert google.given >= 2  # the first when it was granted
    (journal,) = home.glob(".moat/runs/*/journal.jsonl")
    events = [(e.event, e.data.get("outcome")) for e in entries(journal)]
    assert ("login.renewed", "renewed") in events
    assert ("login.answered", "renewed") in events
    assert traces("REAL-access", home / ".moat") == traces("REAL-refresh", home / ".moat") == []


def test_a_login_that_is_none_stores_nothing(moat: Moat, vendors: Vendor, home: Path) -> None:
    del vendors
    for changes, message in [
        ({"refresh_token": "1//revoked"}, "no longer accepts the login (invalid_grant); nothing was stored"),
        ({"refresh_token": ""}, "holds no login that can be renewed"),
    ]:
        login(home, **changes)
        done = moat("grant", "gemini", "--method", "import")
        assert (done.returncode, message in done.stderr) == (3, True), done.stderr
    (home / ".gemini/oauth_creds.json").write_text('{"access_token": "ya29.REAL"')
    assert "is not JSON" in moat("grant", "gemini", "--method", "import").stderr
    (home / ".gemini/oauth_creds.json").unlink()
    assert "there is no login in ~/.gemini" in moat("grant", "gemini", "--method", "import").stderr
    assert json.loads(moat("grant", "list", "--json").stdout) == []
