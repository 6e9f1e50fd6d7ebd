"""What the documents show is true: commands and flags exist, configuration examples are accepted."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from moat.cli import COMMANDS, main
from moat.config import load, load_user
from moat.paths import Home
from tests.conftest import REPOSITORY
from tests.docs.blocks import blocks, steps

DOCUMENTS = sorted([*REPOSITORY.glob("docs/*.md"), REPOSITORY / "README.md"])
_GROUPS = {
    "deps",
    "policy",
    "system",
    "vault",
    "volumes",
}  # whose first word is an action with flags of its own
_WT_ACTIONS = {"list", "clean"}  # of `moat wt`
_SNAPSHOT = {"list", "show", "diff", "restore", "prune"}  # of `moat snapshot`
_ACTIONS = {
    "list",
    "show",
    "providers",
    "anthropic",
    "github",
    "mcp",
    "oauth",
    "ssh",
    "linear",
    "codex",
    "npm",
    "gitlab",
    "aws",
    "docker",
}  # of `moat grant`


def commands() -> list[tuple[str, list[str]]]:
    """(document, words after `moat`) of every `$ moat …` line."""
    found = []
    for path in DOCUMENTS:
        for block in blocks(path):
            for step in steps(block) if block.language == "console" else ():
                shown = re.match(r"(?:.*(?:&&|\|) )?moat (.*)", step.command, re.DOTALL)
                if shown:
                    found.append((path.name, shlex.split(shown[1], comments=True)))
    return found


def help_of(words: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue()


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 40


@pytest.mark.parametrize(("document", "words"), commands(), ids=lambda v: v if isinstance(v, str) else v[0])
def test_a_shown_command_exists_with_its_flags(document: str, words: list[str]) -> None:
    words = words[: words.index("--")] if "--" in words else words
    assert words[0] in COMMANDS, f"{document}: moat {words[0]}"
    actions = {"grant": _ACTIONS, "snapshot": _SNAPSHOT, "wt": _WT_ACTIONS}.get(words[0], set())
    has_action = words[0] in _GROUPS or not actions.isdisjoint(words[1:2])
    of = words[:2] if has_action or words[:2] == ["claude", "plugins"] else words[:1]
    text = help_of(of)
    for word in words:
        if word in {"|", ">", "<", ";", "#"}:
            break
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), f"{document}: {words} {word}"


def test_the_configuration_examples_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "shared-data").mkdir()
    count = 0
    for path in DOCUMENTS:
        for number, block in enumerate(blocks(path)):
            if block.language != "yaml" or block.file not in {None, "agent.yaml"}:
                continue
            text = block.text
            place = tmp_path / f"{path.stem}-{number}"
            place.mkdir()
            if text.startswith(("upstream:", "journal:", "ask:", "output:")):
                place.chmod(0o700)
                bundle = str(_bundle(tmp_path))
                (place / "config.yaml").write_text(text.replace("~/company-ca.pem", bundle))
                (place / "config.yaml").chmod(0o600)
                user = load_user(Home(place))
                assert user.upstream.connect_to or "connect_to" not in text
                assert user.journal.copy_to or "copy_to" not in text
            else:
                (place / "agent.yaml").write_text(text)
                assert load(place).path is not None
            count += 1
    assert count >= 5


def _bundle(directory: Path) -> Path:
    path = directory / "company-ca.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    return path


def test_every_document_can_be_reached_from_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    missing = [path.name for path in REPOSITORY.glob("docs/*.md") if f"docs/{path.name}" not in readme]
    assert not missing


def test_every_variable_of_the_code_is_documented() -> None:
    """A switch that only the code knows is a trap."""
    used = set()
    for path in (REPOSITORY / "moat").rglob("*.py"):
        used |= set(re.findall(r"[\"'](MOAT_[A-Z_]+)[\"']", path.read_text()))
    documented = set(re.findall(r"MOAT_[A-Z_]+", (REPOSITORY / "docs/configuration.md").read_text()))
    used.discard("MOAT_SANDBOX")  # a mark that Moat puts on its own processes
    assert used <= documented, used - documented
