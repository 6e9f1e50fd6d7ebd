"""Esc in every question of every wizard: back to the question before, to the list, and out of it.

Seen to fail: without the binding of Esc in `moat.cli.menu` nothing happens and the first step waits in vain; with a
`Console` in place of the `Walk`, Esc at the API key ends the command. Without one of the `Walk`'s questions Esc behind
it goes one further; without its `print` all is said again; without the line in `_plain` a dumb terminal stays.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from moat.cli.menu import Console, SteppedBackError
from moat.cli.walk import Walk
from moat.grants import CredentialKind
from moat.paths import Home
from moat.vault.providers import entries
from tests.cli.wizard import HOSTS, KEY, TOKEN, Start, Terminal, api, nothing_stored, stored
from tests.ssh.world import agent, make_key
from tests.vault.vendor import Answer, Asked, Vendor, vendor

ESC = "\x1b"
METHOD = "Enter choice [1, 2, or 3]: "


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In files whose protection the user chooses: that question, too, can be gone back to."""
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")


@pytest.fixture
def vendors(tmp_path: Path) -> Iterator[Vendor]:
    with vendor(tmp_path / "vendor", api, *HOSTS) as server:
        server.config(Home.from_environment().root, "api.anthropic.com")
        yield server


def test_back_through_a_whole_wizard_and_on(start: Start, vendors: Vendor, tmp_path: Path) -> None:
    terminal = start("grant", size=(24, 80), NO_COLOR="1")
    terminal.shows("  1. anthropic", " 20. oauth", "Esc back")
    terminal.types("anthropic\r")
    terminal.sees("Enter choice [1 or 2]: ")
    terminal.types("1\r")
    terminal.sees("New passphrase: ")
    terminal.types("a-passphrase\r")
    terminal.sees("The same again: ")
    for question in ("New passphrase: ", "Enter choice [1 or 2]: "):
        terminal.types(ESC)
        terminal.sees(question)
    terminal.types("2\r")
    terminal.sees(METHOD)
    terminal.types("2\r")
    terminal.sees("API Key: ")
    terminal.types("\x1b[D\x1b[A\x1bOC")  # arrows begin with the same byte
    terminal.types(KEY[:30])
    terminal.types(ESC)
    terminal.sees("Choose authentication method:", METHOD)
    terminal.types("2\r")
    terminal.sees("API Key: ")
    terminal.types(f"\x1b[200~{TOKEN}\x1b[201~\r")  # a wrong one, pasted
    terminal.sees("this is a subscription token", "API Key: ")
    terminal.types(KEY + "\r")
    terminal.sees("[Y/n]: ")
    before = len(terminal.raw)
    terminal.types(ESC)
    terminal.sees("Enter your Anthropic API key.", "API Key: ")
    assert b"Choose authentication method" not in terminal.raw[before:], "that is on the screen"
    terminal.types(KEY + "\r")
    terminal.sees("[Y/n]: ")
    assert vendors.asked == []
    assert nothing_stored()
    for question in ("API Key: ", METHOD, "Enter choice [1 or 2]: "):
        terminal.types(ESC)
        terminal.sees(question)
    terminal.types(ESC)
    terminal.shows("Esc back")
    assert nothing_stored()
    terminal.types("anthropic\r")
    for question, answer in (
        ("Enter choice [1 or 2]: ", "2"),
        (METHOD, "2"),
        ("API Key: ", KEY),
        ("[Y/n]: ", ""),
    ):
        terminal.sees(question)
        terminal.types(answer + "\r")
    terminal.sees("Validating API key...", "API key is valid.", "Anthropic API key saved to")
    terminal.ends()
    assert stored() == (KEY, CredentialKind.API_KEY, "prompt")


def test_back_over_a_yes_to_the_key(start: Start, tmp_path: Path) -> None:
    """Nobody is there to check it: Esc at the second yes or no leads to the first, then to the key itself."""
    with vendor(tmp_path / "vendor", lambda _: (500, {}), *HOSTS) as server:
        server.config(Home.from_environment().root, "api.anthropic.com")
        terminal = start("grant", "anthropic", MOAT_KEY_FILE=str(tmp_path / "key"))
        for question, answer in ((METHOD, "2\r"), ("API Key: ", KEY + "\r"), ("[Y/n]: ", "\r")):
            terminal.sees(question)
            terminal.types(answer)
        terminal.sees("Save it anyway? [y/N]: ")
        for question in ("[Y/n]: ", "API Key: ", METHOD):
            terminal.types(ESC)
            terminal.sees(question)
        terminal.types(ESC)
        terminal.ends(130)
    assert len(server.asked) == 1
    assert nothing_stored()


# What is typed at the list and after it, and the question that is there then.
QUESTIONS = (
    ("github", "Token: "),
    ("gitlab\r", "Host (Enter: gitlab.com): "),
    ("gitlab\r", "Token: "),
    ("npm\r", "Token: "),
    ("pypi", "Token: "),
    ("gemini", "Token: "),
    ("datadog\r", "Token: "),
    ("aws", "ARN of the role: "),
    ("docker", "Host (Enter: "),
    ("ssh", "Host: "),
    ("mcp", "Name: "),
    ("mcp\rlinear", "URL of the server (Enter: as agent.yaml says): "),
    ("mcp\rlinear\r", "Token or API key: "),
    ("oauth\rlinear", "URL of the server (Enter: as agent.yaml says): "),
)


def test_out_of_every_kind_of_question_and_back_to_the_list(start: Start, tmp_path: Path) -> None:
    """Of the URL Esc leads to the name, of all others to the list; then Ctrl-C, and everything is as it was."""
    key = tmp_path / "key"
    terminal = start("grant", size=(50, 200), MOAT_KEY_FILE=str(key), PATH="/usr/bin:/bin")
    for typed, question in QUESTIONS:
        terminal.shows("Esc back")
        _type(terminal, typed)
        terminal.sees(question)
        terminal.types(ESC)
        if question.startswith("URL"):
            terminal.sees("Name: ")
            terminal.types(ESC)
    terminal.shows("Esc back")
    terminal.types("\x03")
    terminal.ends(130)
    assert nothing_stored()
    assert not key.exists()


REGISTRY = "registry.example.com"


def _asks_for_a_password(asked: Asked) -> Answer:
    return 401, {}, {"WWW-Authenticate": 'Basic realm="x"'}


def test_out_of_a_login_to_a_registry_and_of_the_choice_of_a_key(
    start: Start, tmp_path: Path, home: Path
) -> None:
    """Questions that come after somebody else was asked: a registry, the user's SSH agent."""
    short = Path(tempfile.mkdtemp(prefix="mg-", dir="/tmp"))  # for a socket
    keys = [make_key(short / name) for name in ("one", "two", "host")]
    (home / ".ssh").mkdir(mode=0o700)
    (home / ".ssh/known_hosts").write_text(f"github.com {Path(f'{keys[2]}.pub').read_text()}")
    with (
        vendor(tmp_path / "vendor", _asks_for_a_password, REGISTRY) as server,
        agent(short, *keys[:2]) as sock,
    ):
        server.config(Home.from_environment().root, REGISTRY)
        terminal = start("grant", MOAT_KEY_FILE=str(tmp_path / "key"), SSH_AUTH_SOCK=sock)
        terminal.shows("Esc back")
        _type(terminal, f"docker\r{REGISTRY}")
        terminal.sees(f"The password goes to {REGISTRY} and nowhere else.", "Username: ")
        terminal.types("octocat\r")
        terminal.sees("Password or access token: ")
        terminal.types(f"a-secret{ESC}")
        terminal.sees("Username: ")
        terminal.types(ESC)
        terminal.shows("Esc back")
        _type(terminal, "ssh\rgithub.com")
        terminal.sees("Which key may runs use?", "Enter choice [1-2]: ")
        terminal.types(ESC)
        terminal.shows("Esc back")
        terminal.types("\x03")
        terminal.ends(130)
    assert not any("authorization" in asked.headers for asked in server.asked)
    assert nothing_stored()
    assert b"a-secret" not in terminal.raw
    shutil.rmtree(short)


def _type(terminal: Terminal, typed: str) -> None:
    name, *more = typed.split("\r")
    number = re.search(rf"(\d+)\. {name} ", terminal.shown())
    assert number is not None
    terminal.types(f"{number[1]}\r")
    for answer in more:
        terminal.sees(": ")
        terminal.types(answer + "\r")


def test_a_dumb_terminal_goes_back_by_esc_and_enter(start: Start) -> None:
    terminal = start("grant", TERM="dumb")
    terminal.sees(f"Grant [1-{len(entries())}, 0 to go back]: ")
    terminal.types("1\n")
    for question, answer in (("Enter choice [1 or 2]: ", "2\n"), (METHOD, "2\n"), ("API Key: ", ESC + "\n")):
        terminal.sees(question)
        terminal.types(answer)
    for question in (METHOD, "Enter choice [1 or 2]: ", "0 to go back]: "):
        terminal.sees(question)
        terminal.types(ESC + "\n")
    terminal.ends()
    assert nothing_stored()


def test_an_answer_is_for_the_question_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another `moat grant` may have settled one meanwhile. Fails without the look at the question in `Walk._answer`."""
    questions = iter(("Passphrase: ", "Host: ", "Token: ", "Host: ", "Token: "))
    asked: list[str] = []

    def line(_: Console, question: str) -> str:
        asked.append(question)
        if len(asked) == 3:
            raise SteppedBackError
        return f"to {question}"

    def wizard() -> list[str]:
        return [walk.line(next(questions)) for _ in range(3 if len(asked) < 3 else 2)]

    monkeypatch.setattr(Console, "line", line)
    walk = Walk()
    assert walk.through(wizard) == ["to Host: ", "to Token: "]
    assert asked == ["Passphrase: ", "Host: ", "Token: ", "Host: ", "Token: "]


def test_without_a_list_the_first_question_leads_out(start: Start) -> None:
    terminal = start("grant", "github", PATH="/usr/bin:/bin")
    terminal.sees("Enter choice [1 or 2]: ")
    terminal.types(ESC)
    terminal.ends(130)
    assert nothing_stored()
