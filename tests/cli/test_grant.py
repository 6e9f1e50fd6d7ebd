"""`moat grant`, `moat revoke` without a terminal: scripts grant, nothing is asked, nothing leaks."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.grants import CredentialKind
from moat.paths import Home
from moat.vault import open_vault
from tests.vault.keyring_session import LEAVES_CONNECTIONS, keyring_session
from tests.vault.vendor import Answer, Asked, Vendor, vendor

KEY = "sk-ant-api03-REALAPIKEYSECRET"
TOKEN = "sk-ant-oat01-REALTOKENSECRET"
GITHUB = "ghp_REALGITHUBSECRET"
SECRETS = (KEY, TOKEN, GITHUB)
HOSTS = ("api.anthropic.com", "api.github.com")

Moat = Callable[..., subprocess.CompletedProcess[str]]


def accept(asked: Asked) -> Answer:
    given = asked.headers.get("x-api-key") or asked.headers.get("authorization", "").removeprefix("Bearer ")
    if given not in SECRETS:
        return 401, {"error": {"message": f"{given} is wrong"}}
    return 200, {"login": "octocat"}


@pytest.fixture
def vendors(tmp_path: Path, home: Path) -> Iterator[Vendor]:
    with vendor(tmp_path / "vendor", accept, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        yield server


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")


@pytest.fixture(autouse=True)
def _no_traces(home: Path, tmp_path: Path) -> Iterator[None]:
    """After every test: no secret in any file that Moat wrote, in any form."""
    yield
    for file in (home / ".moat").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            for secret in SECRETS:
                assert secret.encode() not in data, file
                assert base64.b64encode(secret.encode()).rstrip(b"=")[:-1] not in data, file


def quiet(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The same, having said no secret."""
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def stored() -> tuple[str, CredentialKind, str]:
    found = open_vault(Home.from_environment()).get("anthropic")
    return found.secret.reveal(), found.info.kind, found.info.metadata["source"]


# anthropic


def test_api_key_from_stdin(moat: Moat, vendors: Vendor) -> None:
    done = quiet(moat("grant", "anthropic", "--token-stdin", input=KEY + "\n"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Validating API key...",
        "API key is valid.",
        "Anthropic API key saved to ~/.moat/credentials/anthropic.enc",
    ]
    assert stored() == (KEY, CredentialKind.API_KEY, "stdin")
    assert [asked.path for asked in vendors.asked] == ["/v1/messages"]


def test_subscription_token_from_stdin(moat: Moat, vendors: Vendor) -> None:
    """Soft-wrapped, as it comes out of a terminal."""
    done = quiet(moat("grant", "claude", "--token-stdin", input=f"  {TOKEN[:20]}\n{TOKEN[20:]}\r\n"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Validating token...",
        "Token is valid.",
        "Anthropic credential saved to ~/.moat/credentials/anthropic.enc",
    ]
    assert stored() == (TOKEN, CredentialKind.OAUTH, "stdin")
    assert vendors.asked[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("variable", "value", "kind"),
    [
        ("ANTHROPIC_API_KEY", KEY, CredentialKind.API_KEY),
        ("CLAUDE_CODE_OAUTH_TOKEN", TOKEN, CredentialKind.OAUTH),
    ],
)
@pytest.mark.usefixtures("vendors")
def test_from_the_environment(
    moat: Moat,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    kind: CredentialKind,
) -> None:
    monkeypatch.setenv(variable, value)
    done = quiet(moat("grant", "anthropic"))
    assert done.returncode == 0, done.stderr
    assert stored() == (value, kind, variable)


def test_without_anything_it_says_what_to_do(moat: Moat, home: Path) -> None:
    done = moat("grant", "anthropic")
    assert done.returncode == 2
    assert "moat: error: no terminal to ask at, and no credential given" in done.stderr
    assert "ANTHROPIC_API_KEY" in done.stderr
    assert "--token-stdin" in done.stderr
    assert list((home / ".moat").rglob("*.enc")) == []


@pytest.mark.parametrize("method", ["subscription", "api-key"])
def test_a_method_without_a_terminal_never_waits(moat: Moat, method: str) -> None:
    done = moat("grant", "anthropic", "--method", method, timeout=20)
    assert done.returncode == 2
    assert "--token-stdin" in done.stderr


def test_a_rejected_key_is_not_stored(moat: Moat, vendors: Vendor, home: Path) -> None:
    wrong = "sk-ant-api03-WRONGKEY"
    done = moat("grant", "anthropic", "--token-stdin", input=wrong)
    assert done.returncode == 3
    assert "Anthropic does not accept this API key (HTTP 401); nothing was stored" in done.stderr
    assert wrong not in done.stdout + done.stderr  # the server quoted it
    assert list((home / ".moat").rglob("*.enc")) == []


def test_a_rejected_key_leaves_the_old_one(moat: Moat, vendors: Vendor) -> None:
    moat("grant", "anthropic", "--token-stdin", input=KEY)
    assert moat("grant", "anthropic", "--token-stdin", input="sk-ant-api03-WRONG").returncode == 3
    assert stored()[0] == KEY


def test_no_validate_asks_nobody(moat: Moat, vendors: Vendor) -> None:
    done = quiet(moat("grant", "anthropic", "--token-stdin", "--no-validate", input=KEY))
    assert done.stdout == "Anthropic API key saved to ~/.moat/credentials/anthropic.enc\n"
    assert vendors.asked == []


def test_a_vendor_that_cannot_be_asked_is_a_warning(moat: Moat, home: Path) -> None:
    (home / ".moat").mkdir(mode=0o700)
    config = home / ".moat/config.yaml"
    config.write_text('upstream:\n  connect_to:\n    "api.anthropic.com:443": "127.0.0.1:9"\n')
    config.chmod(0o600)
    done = quiet(moat("grant", "anthropic", "--token-stdin", input=KEY))
    assert done.returncode == 0
    assert "moat: warning: not validated: api.anthropic.com cannot be reached" in done.stderr
    assert stored()[0] == KEY


@pytest.mark.parametrize(
    ("given", "argv", "told"),
    [
        ("", (), "starts with sk-ant-"),
        ("hunter2", (), "starts with sk-ant-"),
        ("sk-ant-api03-a\x01b", (), "characters that no credential has"),
        ("sk-ant-api03-é", (), "characters that no credential has"),
        (TOKEN, ("--method", "api-key"), "a subscription token, not an API key"),
        (TOKEN, ("--api-key",), "a subscription token, not an API key"),
        (KEY, ("--method", "subscription"), "starts with sk-ant-oat"),
    ],
)
def test_what_is_no_key_is_refused(
    given: str, argv: tuple[str, ...], told: str, *, moat: Moat, home: Path, vendors: Vendor
) -> None:
    done = quiet(moat("grant", "anthropic", "--token-stdin", *argv, input=given))
    assert done.returncode == 2
    assert told in done.stderr
    assert "nothing was stored" in done.stderr
    assert not given or given not in done.stderr
    assert vendors.asked == [], "before any request"
    assert list((home / ".moat").rglob("*.enc")) == []


def local_login(home: Path, expires: dt.datetime) -> None:
    login = {
        "accessToken": TOKEN,
        "refreshToken": "sk-ant-ort01-REFRESH",
        "expiresAt": int(expires.timestamp() * 1000),
        "scopes": ["user:inference", "user:profile"],
        "subscriptionType": "claude_pro",
    }
    path = home / ".claude/.credentials.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"claudeAiOauth": login}))


def test_import(moat: Moat, home: Path) -> None:
    local_login(home, dt.datetime(2099, 2, 15, 10, 30, tzinfo=dt.UTC))
    done = quiet(moat("grant", "anthropic", "--method", "import"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "",
        "Found Claude Code credentials.",
        "  Subscription: claude_pro",
        "  Expires: 2099-02-15T10:30:00Z",
        "",
        "Claude Code credentials imported to ~/.moat/credentials/anthropic.enc",
    ]
    info = open_vault(Home.from_environment()).info("anthropic")
    assert info.expires_at == dt.datetime(2099, 2, 15, 10, 30, tzinfo=dt.UTC)
    assert info.metadata["scopes"] == "user:inference user:profile"
    # The refresh token stays where it was.
    assert all(b"REFRESH" not in path.read_bytes() for path in (home / ".moat").rglob("*") if path.is_file())


def test_import_of_an_expired_login(moat: Moat, home: Path) -> None:
    local_login(home, dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    done = quiet(moat("grant", "anthropic", "--method", "import"))
    assert done.returncode == 3
    assert "expired at 2020-01-01T00:00:00Z" in done.stderr
    assert "run `claude` on this machine" in done.stderr


def test_import_of_nothing(moat: Moat) -> None:
    done = moat("grant", "anthropic", "--method", "import")
    assert done.returncode == 3
    assert "No Claude Code credentials found" in done.stderr
    assert "install Claude Code and log in, then run `moat grant anthropic` again" in done.stderr
    assert 'export ANTHROPIC_API_KEY="sk-ant-..." && moat grant anthropic' in done.stderr


def test_json(moat: Moat, vendors: Vendor) -> None:
    done = quiet(moat("grant", "anthropic", "--token-stdin", "--json", input=KEY))
    told = json.loads(done.stdout)  # nothing else is on stdout
    assert told["name"] == "anthropic"
    assert told["kind"] == "api-key"
    assert told["store"] == "file"
    assert told["location"] == "~/.moat/credentials/anthropic.enc"
    assert "API key is valid." in done.stderr


# github


@pytest.mark.parametrize("variable", ["GITHUB_TOKEN", "GH_TOKEN"])
def test_github_from_the_environment(
    moat: Moat, vendors: Vendor, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, GITHUB)
    done = quiet(moat("grant", "github"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        (
            "The token goes to api.github.com, uploads.github.com, raw.githubusercontent.com, github.com, "
            "gist.github.com and nowhere else."
        ),
        "The proxy puts it in the header authorization (Bearer; for git: Basic).",
        f"Using the token from {variable}.",
        "Validating token...",
        "Authenticated as octocat.",
        "GitHub token saved to ~/.moat/credentials/github.enc",
    ]
    info = open_vault(Home.from_environment()).info("github")
    assert (info.kind, dict(info.metadata)) == (
        CredentialKind.TOKEN,
        {"source": variable, "login": "octocat"},
    )


def test_github_from_stdin(moat: Moat, vendors: Vendor) -> None:
    assert quiet(moat("grant", "github", "--token-stdin", input=GITHUB)).returncode == 0
    assert open_vault(Home.from_environment()).get("github").secret.reveal() == GITHUB


def fake_gh(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "gh").write_text(f"#!/bin/sh\necho {GITHUB}\n")
    (directory / "gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_github_takes_the_login_of_gh_only_when_told(
    moat: Moat, vendors: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gh(tmp_path / "bin", monkeypatch)
    done = moat("grant", "github")
    assert done.returncode == 2
    assert "--method gh" in done.stderr
    assert quiet(moat("grant", "github", "--method", "gh")).returncode == 0
    assert open_vault(Home.from_environment()).info("github").metadata["source"] == "gh"


def test_github_rejects(moat: Moat, vendors: Vendor) -> None:
    done = moat("grant", "github", "--token-stdin", input="ghp_wrong")
    assert done.returncode == 3
    assert "GitHub does not accept this token (HTTP 401)" in done.stderr
    assert "ghp_wrong" not in done.stderr


# list, show, providers, revoke


def test_list_show_and_revoke(moat: Moat, home: Path) -> None:
    assert moat("grant", "list").stdout.startswith("Nothing is granted.")
    assert json.loads(moat("grant", "list", "--json").stdout) == []
    moat("grant", "anthropic", "--token-stdin", "--no-validate", input=KEY)
    moat("grant", "github", "--token-stdin", "--no-validate", input=GITHUB)
    header, first, second = quiet(moat("grant", "list")).stdout.splitlines()
    assert header.split() == ["NAME", "KIND", "STORE", "CREATED", "EXPIRES"]
    assert first.split()[:3] == ["anthropic", "api-key", "file"]
    assert second.split()[:3] == ["github", "token", "file"]
    known = json.loads(quiet(moat("grant", "list", "--json")).stdout)
    assert [entry["name"] for entry in known] == ["anthropic", "github"]
    assert json.loads(quiet(moat("grant", "show", "claude", "--json")).stdout) == known[0]
    shown = quiet(moat("grant", "show", "anthropic")).stdout
    assert "hosts:      api.anthropic.com" in shown
    done = moat("revoke", "claude")
    assert (done.returncode, done.stdout) == (0, "anthropic removed from ~/.moat/credentials/anthropic.enc\n")
    assert not (home / ".moat/credentials/anthropic.enc").exists()
    assert json.loads(moat("revoke", "github", "--json").stdout)["name"] == "github"
    again = moat("revoke", "github")
    assert again.returncode == 3
    assert "no credential 'github'" in again.stderr
    assert "moat grant list" in again.stderr


def test_list_tells_what_has_expired(moat: Moat, home: Path) -> None:
    local_login(home, dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3))
    assert moat("grant", "anthropic", "--method", "import").returncode == 0
    time.sleep(3)
    assert "(expired)" in moat("grant", "list").stdout
    assert json.loads(moat("grant", "show", "anthropic", "--json").stdout)["expired"] is True


def test_providers(moat: Moat) -> None:
    assert re.search(r"^anthropic +claude ", moat("grant", "providers").stdout, re.MULTILINE)
    known = {entry["name"]: entry for entry in json.loads(moat("grant", "providers", "--json").stdout)}
    assert known["anthropic"]["credential_hosts"] == ["api.anthropic.com"]
    assert known["github"]["aliases"] == ["gh"]


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        ((), 2, "grant what?"),
        (("anthropc",), 3, "did you mean `anthropic`?"),
        (("--verbose",), 2, "unknown option --verbose"),
        (("anthropic", "--method", "magic"), 2, "is not one of subscription, api-key, import"),
        (("anthropic", "--token-stdin", "--method", "import"), 2, "exclude each other"),
        (("show", "anthropic"), 3, "run `moat grant anthropic`"),
        (("show", "../x"), 3, "is not a grant name"),
    ],
)
def test_mistakes(moat: Moat, argv: tuple[str, ...], status: int, told: str) -> None:
    done = moat("grant", *argv)
    assert done.returncode == status
    assert told in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "argv", [("grant", "--help"), ("grant", "anthropic", "--help"), ("revoke", "--help")]
)
def test_help(moat: Moat, argv: tuple[str, ...]) -> None:
    done = moat(*argv)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: moat")


# Where it goes


def test_file_alone_makes_a_key_file_and_says_so(moat: Moat, home: Path) -> None:
    done = moat("grant", "anthropic", "--token-stdin", "--no-validate", input=KEY)
    key = home / ".moat/credentials/key"
    assert f"sealed with the key file {key}" in done.stderr
    assert "MOAT_PASSPHRASE" in done.stderr
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = moat("grant", "github", "--token-stdin", "--no-validate", input=GITHUB)
    assert again.stderr == ""  # said once


def test_with_a_passphrase(moat: Moat, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_PASSPHRASE", "correct horse")
    assert moat("grant", "anthropic", "--token-stdin", "--no-validate", input=KEY).returncode == 0
    assert not (home / ".moat/credentials/key").exists()
    monkeypatch.setenv("MOAT_PASSPHRASE", "wrong horse")
    done = quiet(moat("grant", "github", "--token-stdin", "--no-validate", input=GITHUB))
    assert done.returncode == 3
    assert "moat: error: wrong passphrase for the sealed credentials" in done.stderr
    assert "check MOAT_PASSPHRASE" in done.stderr
    assert "horse" not in done.stderr


@LEAVES_CONNECTIONS
def test_in_the_keyring(moat: Moat, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOAT_KEYRING_BACKEND")
    with keyring_session(home, monkeypatch) as session:
        done = quiet(moat("grant", "anthropic", "--token-stdin", "--no-validate", input=KEY))
        assert done.stdout == "Anthropic API key saved to the OS keyring (Secret Service)\n"
        assert len(session.entries()) == 1
        assert "keyring" in moat("grant", "list").stdout
        session.lock()
        locked = quiet(moat("grant", "anthropic", "--token-stdin", "--no-validate", input=KEY))
        assert locked.returncode == 3
        assert "moat: error: the OS keyring is locked" in locked.stderr


def test_moat_home_elsewhere(moat: Moat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_HOME", str(tmp_path / "elsewhere"))
    done = moat("grant", "anthropic", "--token-stdin", "--no-validate", input=KEY)
    assert (
        done.stdout.splitlines()[-1]
        == f"Anthropic API key saved to {tmp_path}/elsewhere/credentials/anthropic.enc"
    )


def test_two_grants_at_once(moat_bin: str) -> None:
    """Real processes on a fresh home, so both also make the key at the same time."""
    given = {"anthropic": KEY, "github": GITHUB}
    running = [
        subprocess.Popen(
            [moat_bin, "grant", name, "--token-stdin", "--no-validate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in given
    ]
    for process, secret in zip(running, given.values(), strict=True):
        assert process.stdin
        process.stdin.write(secret)
        process.stdin.close()
    for process in running:
        assert process.stdout
        assert process.stderr
        assert process.wait(60) == 0, process.stderr.read()
        process.stdout.close()
        process.stderr.close()
    vault = open_vault(Home.from_environment())
    assert {name: vault.get(name).secret.reveal() for name in given} == given


# Never in argv or environ of any process


def test_no_process_shows_the_secret(moat_bin: str, tmp_path: Path) -> None:
    """While a grant waits for a slow vendor, its command line and environment are read from /proc."""

    def slow(asked: Asked) -> Answer:
        time.sleep(1.5)
        return accept(asked)

    with vendor(tmp_path / "slow", slow, *HOSTS) as server:
        server.config(Home.from_environment().root, *HOSTS)
        process = subprocess.Popen(
            [moat_bin, "grant", "anthropic", "--token-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert process.stdin
        process.stdin.write(KEY.encode())
        process.stdin.close()
        seen = 0
        while process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends while it is looked at
                for name in ("cmdline", "environ"):
                    data = Path(f"/proc/{process.pid}/{name}").read_bytes()
                    assert KEY.encode() not in data
                    seen += len(data)
            time.sleep(0.05)
        assert process.returncode == 0
        assert seen > 0


@LEAVES_CONNECTIONS
@pytest.mark.usefixtures("vendors")
def test_no_log_has_the_secret(
    moat: Moat, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every library at its most talkative: keyring, D-Bus, asyncio and aiohttp in debug mode."""
    monkeypatch.delenv("MOAT_KEYRING_BACKEND")
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud/sitecustomize.py").write_text(
        "import logging; logging.basicConfig(level=logging.NOTSET)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "loud"))
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    with keyring_session(home, monkeypatch):
        done = quiet(moat("grant", "anthropic", "--token-stdin", input=KEY))
        assert done.returncode == 0
        assert "DEBUG:" in done.stderr  # they did talk
        assert stored()[0] == KEY


def test_listing_imports_nothing_heavy(home: Path) -> None:
    code = (
        "import sys; from moat.cli import main; main(['grant', 'list'])\n"
        "heavy = {'keyring', 'cryptography', 'aiohttp', 'prompt_toolkit', 'ruamel', 'asyncio', 'anyio'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
