"""The wizard at a real terminal: the guide's menu to the letter, all three ways in, and every way out.

Also the real `claude setup-token`, driven to its end against a TLS stand-in of platform.claude.com.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from moat.grants import CredentialKind
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.providers import entries
from tests.cli.wizard import GITHUB, HOSTS, KEY, TOKEN, Start, api, nothing_stored, stored
from tests.vault.conftest import Make, make
from tests.vault.vendor import Vendor, vendor

__all__ = ["make"]  # a fixture of the vault's

MENU = """\

Choose authentication method:

  1. Claude subscription (recommended)
     Uses 'claude setup-token' to get a long-lived OAuth token.
     Requires a Claude Pro/Max subscription.

  2. Anthropic API key
     Use an API key from console.anthropic.com
     Billed per token to your API account.

  3. Import existing Claude Code credentials
     Use OAuth tokens from your local Claude Code installation.
"""


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(home / ".moat/credentials/key"))


@pytest.fixture
def vendors(tmp_path: Path) -> Iterator[Vendor]:
    with vendor(tmp_path / "vendor", api, *HOSTS) as server:
        server.config(Home.from_environment().root, "api.anthropic.com", "api.github.com")
        yield server


# 2: API key


@pytest.mark.usefixtures("vendors")
def test_the_screen_of_option_2_is_the_guides(start: Start) -> None:
    terminal = start("grant", "anthropic")
    terminal.sees("Enter choice [1, 2, or 3]: ")
    assert terminal.shown() == (MENU + "\nEnter choice [1, 2, or 3]:").strip("\n")
    terminal.types("2\r")
    terminal.sees("API Key: ")
    terminal.types(KEY + "\r")
    terminal.sees("[Y/n]: ")
    terminal.types("y\r")
    terminal.ends()
    after = """
Enter choice [1, 2, or 3]: 2

Enter your Anthropic API key.
You can find or create one at: https://console.anthropic.com/settings/keys

API Key: {stars}

Validate API key with a test request? This makes a small API call. [Y/n]: y

Validating API key...
API key is valid.
Anthropic API key saved to ~/.moat/credentials/anthropic.enc
It goes to api.anthropic.com and nowhere else, in the header x-api-key."""
    shown = terminal.shown()
    stars = shown.split("API Key: ")[1].splitlines()[0]
    assert set(stars) == {"*"}
    assert shown == (MENU + after.format(stars=stars)).strip("\n")
    assert stored() == (KEY, CredentialKind.API_KEY, "prompt")


def test_enter_validates_and_n_does_not(start: Start, vendors: Vendor) -> None:
    for answer, requests in (("\r", 1), ("n\r", 1)):
        terminal = start("grant", "anthropic", ANTHROPIC_API_KEY=KEY)
        terminal.sees("Enter choice [1, 2, or 3]: ")
        terminal.types("2\r")
        terminal.sees("Using the API key from ANTHROPIC_API_KEY.", "[Y/n]: ")
        terminal.types(answer)
        terminal.sees("Anthropic API key saved to ~/.moat/credentials/anthropic.enc")
        terminal.ends()
        assert len(vendors.asked) == requests
        assert stored() == (KEY, CredentialKind.API_KEY, "ANTHROPIC_API_KEY")


@pytest.mark.usefixtures("vendors")
def test_a_rejected_key(start: Start) -> None:
    terminal = start("grant", "anthropic", "--method", "api-key")
    terminal.sees("API Key: ")
    terminal.types("sk-ant-api03-wrong\r")
    terminal.sees("[Y/n]: ")
    terminal.types("\r")
    terminal.sees("moat: error: Anthropic does not accept this API key (HTTP 401); nothing was stored")
    terminal.ends(3)
    assert nothing_stored()


@pytest.mark.parametrize(("answer", "status"), [("y\r", 0), ("\r", 3)])
def test_an_unreachable_vendor_is_the_users_decision(start: Start, answer: str, status: int) -> None:
    root = Home.from_environment().root
    root.mkdir(mode=0o700)
    (root / "config.yaml").write_text(
        'upstream:\n  connect_to:\n    "api.anthropic.com:443": "127.0.0.1:9"\n'
    )
    (root / "config.yaml").chmod(0o600)
    terminal = start("grant", "anthropic", "--api-key", ANTHROPIC_API_KEY=KEY)
    terminal.sees("[Y/n]: ")
    terminal.types("\r")
    terminal.sees("It could not be validated: api.anthropic.com cannot be reached", "Save it anyway? [y/N]: ")
    terminal.types(answer)
    terminal.ends(status)
    assert nothing_stored() is (status != 0)


def test_what_is_no_key_asks_again_three_times(start: Start) -> None:
    terminal = start("grant", "anthropic", "--api-key", "--no-validate")
    for wrong, told in (("\r", "nothing was entered"), ("hello\r", "starts with sk-ant-")):
        terminal.sees("API Key: ")
        terminal.types(wrong)
        terminal.sees(told)
    terminal.sees("API Key: ")
    terminal.types("sk-ant-oat01-token\r")
    terminal.sees("this is a subscription token, not an API key")
    terminal.ends(2)
    assert nothing_stored()


# Wrong input, leaving


def test_wrong_choices_ask_again(start: Start) -> None:
    terminal = start("grant", "anthropic")
    for wrong in ("\r", "4\r", "x\r"):
        terminal.sees("Enter choice [1, 2, or 3]: ")
        terminal.types(wrong)
        terminal.sees("Please enter 1 or 2 or 3.")
    terminal.sees("moat: error: no choice was made")
    terminal.ends(2)
    assert nothing_stored()


@pytest.mark.parametrize("key", ["\x03", "\x04"])
@pytest.mark.parametrize("where", ["menu", "secret", "question"])
@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_control_c_and_d_leave_with_nothing_stored(start: Start, key: str, where: str, term: str) -> None:
    terminal = start("grant", "anthropic", TERM=term)
    terminal.sees("Enter choice [1, 2, or 3]: ")
    if where != "menu":
        terminal.types("2\r")
        terminal.sees("API Key: ")
    if where == "question":
        terminal.types(KEY + "\r")
        terminal.sees("[Y/n]: ")
    terminal.types(key)
    terminal.ends(130)
    assert nothing_stored()
    assert b"Traceback" not in terminal.raw


@pytest.mark.usefixtures("vendors")
def test_a_dumb_terminal_is_enough(start: Start) -> None:
    terminal = start("grant", "anthropic", TERM="dumb")
    terminal.sees("Enter choice [1, 2, or 3]: ")
    terminal.types("2\r")
    terminal.sees("API Key: ")
    terminal.types(KEY + "\r")
    terminal.sees("[Y/n]: ")
    terminal.types("y\r")
    terminal.sees("API key is valid.", "Anthropic API key saved to ~/.moat/credentials/anthropic.enc")
    terminal.ends()
    assert b"\x1b" not in terminal.raw  # nothing that such a terminal would print as garbage
    assert stored()[0] == KEY


def test_json_keeps_stdout_for_the_result(moat_bin: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    terminal = pexpect.spawn(
        "/bin/sh",
        ["-c", f"exec {moat_bin} grant anthropic --json --no-validate > {result}"],
        env=os.environ | {"TERM": "xterm", "ANTHROPIC_API_KEY": KEY},
        timeout=20,
    )
    terminal.expect_exact("Enter choice [1, 2, or 3]: ")
    time.sleep(0.15)
    terminal.send("2\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert json.loads(result.read_text())["kind"] == "api-key"
    assert KEY not in result.read_text()


# 3: import


def test_option_3(start: Start, home: Path) -> None:
    login = {
        "accessToken": TOKEN,
        "expiresAt": int(dt.datetime(2099, 2, 15, 10, 30, tzinfo=dt.UTC).timestamp() * 1000),
        "scopes": ["user:inference"],
        "subscriptionType": "claude_pro",
    }
    (home / ".claude").mkdir()
    (home / ".claude/.credentials.json").write_text(json.dumps({"claudeAiOauth": login}))
    terminal = start("grant", "anthropic")
    terminal.sees("Enter choice [1, 2, or 3]: ")
    terminal.types("3\r")
    terminal.ends()
    after = """
Enter choice [1, 2, or 3]: 3

Found Claude Code credentials.
  Subscription: claude_pro
  Expires: 2099-02-15T10:30:00Z

Claude Code credentials imported to ~/.moat/credentials/anthropic.enc
It goes to api.anthropic.com and nowhere else, in the header authorization (Bearer)."""
    assert terminal.shown() == (MENU + after).strip("\n")
    assert stored() == (TOKEN, CredentialKind.OAUTH, "import")


def test_option_3_without_claude_code(start: Start) -> None:
    terminal = start("grant", "anthropic")
    terminal.sees("Enter choice [1, 2, or 3]: ")
    terminal.types("3\r")
    terminal.sees("No Claude Code credentials found")
    terminal.ends(3)


# 1: subscription


def stand_in(directory: Path, script: str) -> str:
    """A PATH with `script` as the `claude` program."""
    directory.mkdir(exist_ok=True)
    (directory / "claude").write_text(f"#!/usr/bin/env python3\n{script}")
    (directory / "claude").chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


def test_the_screen_of_option_1_is_the_guides(start: Start, tmp_path: Path, home: Path) -> None:
    path = stand_in(
        tmp_path / "bin",
        "import os, sys\n"
        f"open({str(home / 'seen')!r}, 'w').write(repr((sys.argv, dict(os.environ), os.get_terminal_size(0))))\n"
        f"print({TOKEN!r})\n",
    )
    terminal = start("grant", "anthropic", PATH=path, ANTHROPIC_API_KEY=KEY, GITHUB_TOKEN="ghp_x")
    terminal.sees("Enter choice [1, 2, or 3]: ")
    terminal.types("1\r")
    terminal.ends()
    after = """
Enter choice [1, 2, or 3]: 1

Running 'claude setup-token' to obtain authentication token...
This may open a browser for authentication.

Anthropic credential saved to ~/.moat/credentials/anthropic.enc
It goes to api.anthropic.com and nowhere else, in the header authorization (Bearer).

You can now run 'moat claude' to start Claude Code."""
    shown = re.sub(r"\n\n+", "\n\n", terminal.shown())  # the program's own lines end with empty ones
    assert shown == (MENU + after).strip("\n")
    assert stored() == (TOKEN, CredentialKind.OAUTH, "setup-token")
    left = open_vault(Home.from_environment()).info("anthropic").expires_at - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=364) < left < dt.timedelta(days=366)
    seen = (home / "seen").read_text()
    assert "'setup-token'" in seen
    assert int(seen.split("columns=")[1].split(",")[0]) >= 200
    assert KEY not in seen
    assert "ghp_x" not in seen


def test_option_1_with_the_real_claude(
    start: Start, vendors: Vendor, claude_binary: str, tmp_path: Path, home: Path
) -> None:
    """Its own screen on an 80-column terminal, the code typed in, the token taken and never shown."""
    directory = tmp_path / "real"
    directory.mkdir()
    (directory / "claude").symlink_to(claude_binary)
    terminal = start(
        "grant",
        "anthropic",
        PATH=f"{directory}:/usr/bin:/bin",
        BROWSER="/bin/true",
        HTTPS_PROXY=f"http://127.0.0.1:{vendors.proxy_port}",
        NODE_EXTRA_CA_CERTS=str(vendors.ca),
    )
    terminal.setwinsize(40, 80)
    terminal.sees("Enter choice [1, 2, or 3]: ")
    terminal.types("1\r")
    terminal.timeout = 60
    terminal.sees("Running 'claude setup-token'", "https://claude.ai/oauth/authorize?", "prompted")
    time.sleep(1)
    terminal.types("thecode#thestate")
    terminal.types("\r")
    terminal.sees("Anthropic credential saved to ~/.moat/credentials/anthropic.enc")
    terminal.sees("You can now run 'moat claude' to start Claude Code.")
    terminal.ends()
    assert stored() == (TOKEN, CredentialKind.OAUTH, "setup-token")
    exchange = next(asked for asked in vendors.asked if asked.path == "/v1/oauth/token")
    assert exchange.host == "platform.claude.com"
    assert not (home / ".claude/.credentials.json").exists()


@pytest.mark.usefixtures("vendors")
def test_a_command_without_a_token_falls_back_to_paste(start: Start, tmp_path: Path) -> None:
    path = stand_in(tmp_path / "bin", "print('OAuth error: try again'); raise SystemExit(1)")
    terminal = start("grant", "anthropic", "--method", "subscription", PATH=path)
    terminal.sees("OAuth error: try again", "ended without a token (exit status 1)", "Token: ")
    terminal.types(TOKEN + "\r")
    terminal.sees("Token is valid.", "Anthropic credential saved to", "You can now run 'moat claude'")
    terminal.ends()
    assert stored() == (TOKEN, CredentialKind.OAUTH, "paste")


PASTES = {
    "bracketed, wrapped": f"\x1b[200~{TOKEN[:40]}\n  {TOKEN[40:80]}\r\n{TOKEN[80:]}\n\x1b[201~\r",
    "plain, wrapped": f"{TOKEN[:40]}\r{TOKEN[40:80]}\r{TOKEN[80:]}\r",
    "with spaces": f"  {TOKEN[:50]} {TOKEN[50:]} \r",
}


@pytest.mark.usefixtures("vendors")
@pytest.mark.parametrize("paste", PASTES)
def test_without_claude_a_token_is_pasted(start: Start, tmp_path: Path, paste: str) -> None:
    (tmp_path / "empty").mkdir()
    terminal = start("grant", "anthropic", PATH=str(tmp_path / "empty"))
    terminal.sees("Enter choice [1, 2, or 3]: ")
    terminal.types("1\r")
    terminal.sees("is not installed on this machine", "Token: ")
    terminal.types(PASTES[paste])
    terminal.sees("Anthropic credential saved to")
    terminal.ends()
    assert stored() == (TOKEN, CredentialKind.OAUTH, "paste")


def test_control_c_in_setup_token(start: Start, tmp_path: Path) -> None:
    path = stand_in(tmp_path / "bin", "import time; print('waiting', flush=True); time.sleep(60)")
    terminal = start("grant", "anthropic", PATH=path)
    terminal.sees("Enter choice [1, 2, or 3]: ")
    terminal.types("1\r")
    terminal.sees("waiting")
    terminal.types("\x03")
    terminal.ends(130)
    assert nothing_stored()


# Sealed files: the choice is the user's


def test_the_key_of_sealed_files_is_chosen(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOAT_KEY_FILE")
    terminal = start("grant", "anthropic", "--api-key", "--no-validate", ANTHROPIC_API_KEY=KEY)
    terminal.sees("1. A passphrase (recommended)", "2. A key file", "Enter choice [1 or 2]: ")
    terminal.types("1\r")
    terminal.sees("New passphrase: ")
    terminal.types("one\r")
    terminal.sees("The same again: ")
    terminal.types("two\r")
    terminal.sees("They differ.", "New passphrase: ")
    terminal.types("one\r")
    terminal.sees("The same again: ")
    terminal.types("one\r")
    terminal.sees("Anthropic API key saved to")
    terminal.ends()
    assert not (Home.from_environment().credentials / "key").exists()
    monkeypatch.setenv("MOAT_PASSPHRASE", "one")
    assert stored()[0] == KEY
    monkeypatch.delenv("MOAT_PASSPHRASE")
    terminal = start("grant", "anthropic", "--api-key", "--no-validate", ANTHROPIC_API_KEY=KEY)
    terminal.sees("Passphrase of the sealed credentials: ")
    terminal.types("wrong\r")
    terminal.sees("That is not the passphrase.", "Passphrase of the sealed credentials: ")
    terminal.types("one\r")
    terminal.sees("Anthropic API key saved to")
    terminal.ends()


# GitHub


def fake_gh(directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "gh").write_text(f"#!/bin/sh\necho {GITHUB}\n")
    (directory / "gh").chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


@pytest.mark.usefixtures("vendors")
def test_github_asks_before_it_takes_the_login_of_gh(start: Start, tmp_path: Path) -> None:
    terminal = start("grant", "github", PATH=fake_gh(tmp_path / "bin"))
    terminal.sees("The token goes to api.github.com, ", "github.com, gist.github.com and nowhere else.")
    terminal.sees("in the header authorization (Bearer; for git: Basic)", "Use the token of gh? [Y/n]: ")
    terminal.types("\r")
    terminal.sees("Authenticated as octocat.", "GitHub token saved to ~/.moat/credentials/github.enc")
    terminal.ends()
    terminal = start("grant", "github", PATH=fake_gh(tmp_path / "bin"))
    terminal.sees("Use the token of gh? [Y/n]: ")
    terminal.types("n\r")
    terminal.sees("Token: ")
    terminal.types(GITHUB + "\r")
    terminal.sees("Authenticated as octocat.")
    terminal.ends()
    assert open_vault(Home.from_environment()).info("github").metadata["source"] == "prompt"


# The menu of all providers

PYPI = "pypi-REALUPLOADTOKEN0123456789"


def names() -> list[str]:
    return [info.name for info in open_vault(Home.from_environment()).list()]


def test_the_menu_is_searched_and_what_was_found_is_granted(start: Start) -> None:
    terminal = start("grant", PYPI_TOKEN=PYPI)
    terminal.shows("anthropic", "oauth", "Esc back")
    assert re.search(r"7\. pypi +Uploads to PyPI \[found: PYPI_TOKEN\]", terminal.shown())
    terminal.types("/upl")  # as in a pager
    terminal.shows("Grant upl\n  7. pypi")
    terminal.types("\r")
    terminal.sees(
        "The credential goes to upload.pypi.org and nowhere else.", "Using the token from PYPI_TOKEN."
    )
    terminal.ends()
    assert "Grant pypi" in terminal.shown()
    assert "7. pypi" not in terminal.shown(), "the list is erased"
    assert PYPI not in terminal.shown()
    again = start("grant")
    again.shows("Esc back")
    assert re.search(r"pypi +Uploads to PyPI \[granted\]", again.shown())
    again.types("7\r")
    again.sees("pypi is granted. Replace it?")
    again.types("n\r")
    again.shows("Esc back")  # a no leads back to the list
    again.types("\x1b")
    again.ends()
    assert names() == ["pypi"]


def test_every_way_out_of_the_menu_leaves_everything_as_it_was(start: Start) -> None:
    for keys, status in (("\x1b", 0), ("\x03", 130), ("\x04", 130)):
        terminal = start("grant", PYPI_TOKEN=PYPI)
        terminal.shows("Esc back")
        terminal.types(keys)
        terminal.ends(status)
    terminal = start("grant")
    terminal.shows("Esc back")
    terminal.types("xyz")
    terminal.shows("nothing like that")
    terminal.types("\r")  # takes nothing
    terminal.types("\x1b")  # clears what is sought
    terminal.shows("anthropic")
    number = re.search(r"(\d+)\. ssh ", terminal.shown())
    assert number is not None
    terminal.types(f"{number[1]}\r")
    terminal.sees("Host: ")
    terminal.types("\x03")
    terminal.ends(130)
    assert names() == []


def test_the_menu_on_a_small_and_on_a_dumb_terminal(start: Start) -> None:
    small = start("grant", NO_COLOR="1")
    small.setwinsize(12, 50)
    small.shows("anthropic")
    small.types("\x1b[B" * (len(entries()) - 1))  # to the end of a list that is longer than the screen
    small.shows("oauth")
    small.types("\x1b")
    small.ends()
    dumb = start("grant", TERM="dumb", PYPI_TOKEN=PYPI)
    dumb.sees("  7. pypi", f"Grant [1-{len(entries())}, 0 to go back]: ")
    dumb.types("7\n")
    dumb.ends()
    assert b"\x1b" not in dumb.raw
    assert names() == ["pypi"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def test_what_a_run_misses_is_granted_on_the_spot(start: Start, project: Path) -> None:
    command = (
        "run",
        str(project),
        "--runtime",
        "embedded",
        "--grant",
        "pypi",
        "--",
        "sh",
        "-c",
        "echo it ran",
    )
    no = start(*command, PYPI_TOKEN=PYPI)
    no.sees("missing grant: pypi", "Grant now? [Y/n]: ")
    no.types("n\r")
    no.sees("error: missing grant: pypi", "hint: run `moat grant pypi`")
    no.ends(3)
    never = start(*command[:2], "--no-prompt", *command[2:], PYPI_TOKEN=PYPI)
    never.sees("error: missing grant: pypi")
    never.ends(3)
    assert "Grant now?" not in never.shown()
    yes = start(*command, PYPI_TOKEN=PYPI)
    yes.sees("Grant now? [Y/n]: ")
    yes.types("\r")
    yes.sees("$ moat grant pypi", "Credential pypi saved", "it ran")
    yes.ends()


SILENT = (
    (2, "grant what?", ("grant",)),
    (2, "ANTHROPIC_API_KEY", ("grant", "anthropic", "--method", "api-key")),
    (2, "--token-stdin", ("grant", "github")),
    (2, "--token-stdin", ("grant", "gitlab")),
    (2, "--role", ("grant", "aws")),
    (2, "--token-stdin", ("grant", "mcp", "acme", "--url", "https://mcp.example.com/")),
    (2, "a secret is shown at a terminal only", ("grant", "show", "pypi", "--show-token")),
    (2, "no terminal to ask for the passphrase", ("vault", "export", "file.age")),
    (3, "missing grant: linear", ("run", "--runtime", "embedded", "-g", "linear", "--", "true")),
)


def test_a_variable_silences_every_question_at_a_terminal(
    start: Start, make: Make, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    """As `--no-prompt` does. Seen to fail without the look at the variable in `Console`, and in what `run` asks with."""
    open_vault(Home.from_environment()).put(make(name="pypi", secret=PYPI))
    monkeypatch.chdir(project)
    quiet = {"PATH": "/usr/bin:/bin", "MOAT_NO_PROMPT": "1"}
    asked = {argv: start(*argv, **quiet) for _, _, argv in SILENT}
    with monkeypatch.context() as shut:  # another home, which only a passphrase opens
        shut.delenv("MOAT_KEY_FILE")
        shut.setenv("MOAT_HOME", str(project.parent / "shut"))
        shut.setenv("MOAT_PASSPHRASE", "of the files")
        open_vault(Home.from_environment()).put(make(name="pypi", secret=PYPI))
        run = start("run", "--runtime", "embedded", "-g", "pypi", "--", "true", **quiet, MOAT_PASSPHRASE="")
    for status, told, argv in SILENT:
        asked[argv].sees(told)
        asked[argv].ends(status)
    run.sees("need their passphrase")
    run.ends(3)
    assert names() == ["pypi"]


def test_profiles_are_apart_and_a_flag_names_one(start: Start, project: Path) -> None:
    grant = start("grant", "pypi", "--profile", "work", PYPI_TOKEN=PYPI, MOAT_PROFILE="home")
    grant.ends()
    assert names() == []
    for profile, told in (("home", "Nothing is granted."), ("work", "pypi")):
        listed = start("grant", "list", "--profile", profile)
        listed.sees(told)
        listed.ends()
    run = start(
        "run",
        str(project),
        "--runtime",
        "embedded",
        "--profile",
        "work",
        "-g",
        "pypi",
        "--",
        "echo",
        "it ran",
    )
    run.sees("it ran")
    run.ends()


def test_a_secret_is_shown_at_a_terminal_after_a_question(
    start: Start, moat: Callable[..., object], moat_bin: str
) -> None:
    start("grant", "pypi", PYPI_TOKEN=PYPI).ends()
    no = start("grant", "show", "pypi", "--show-token")
    no.sees("Show the secret of pypi on this screen? [y/N]: ")
    no.types("\r")
    no.ends(1)
    assert PYPI not in no.shown()
    yes = start("grant", "show", "pypi", "--show-token")
    yes.sees("[y/N]: ")
    yes.types("y\r")
    yes.sees(PYPI)
    yes.ends()
    piped = moat("grant", "show", "pypi", "--show-token")
    assert (piped.returncode, piped.stdout) == (2, "")
    assert "a secret is shown at a terminal only" in piped.stderr
