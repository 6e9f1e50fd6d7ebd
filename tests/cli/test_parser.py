"""What is wrong with a command line is said in Moat's form, with what was meant, and nothing is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from moat import cli
from moat.cli import claude as cli_claude
from tests.conftest import REPOSITORY

CASES = {
    "frobnicate": ("no command 'frobnicate'", "`moat --help` lists the commands"),
    "stpo": ("no command 'stpo'", "did you mean `moat stop`?"),
    "rollback": ("no command 'rollback'", "did you mean `moat snapshot restore`?"),
    "codex": ("no command 'codex'", "did you mean `moat run -i --grant codex -- codex`?"),
    "--json": ("unknown option '--json'", "`moat --help` lists the commands"),
    "help stpo": ("no command 'stpo'", "did you mean `moat stop`?"),
    "stop -t -1": ("-t/--time: '-1' is not a valid value", "`moat stop --help` tells more"),
    "stop -t nan": ("-t/--time: 'nan' is not a valid value", "`moat stop --help` tells more"),
    "run --runtme docker -- true": ("unknown option --runtme", "did you mean `--runtime`?"),
    "run --runtime=dokcer -- true": (
        "--runtime: 'dokcer' is not one of docker, embedded",
        "did you mean `docker`?",
    ),
    "run --name": ("-n/--name: expected one argument", "`moat run --help` tells more"),
    "claude --resme=x": ("unknown option --resme", "did you mean `--resume`?"),
    "claude --model opus": ("unknown option --model", cli_claude._CLAUDES["--model"]),
    "claude --dangerously-skip-permissions": (
        "unknown option --dangerously-skip-permissions",
        "it is the default; --noyolo lets Claude Code ask",
    ),
    "audit a b": ("unexpected argument 'b'", "`moat audit --help` tells more"),
    "logs -n x": ("-n/--lines: 'x' is not a valid value", "`moat logs --help` tells more"),
    "volumes rm": ("NAME[/VOLUME] is missing", "`moat volumes rm --help` tells more"),
    "grant ssh": ("--host is missing", "`moat grant ssh --help` tells more"),
    "claude plugins": ("verb is missing, one of list, update", "`moat claude plugins --help` tells more"),
    "trust": ("action is missing, one of install, remove, status", "`moat trust --help` tells more"),
    "system imges": ("images|prune: 'imges' is not one of images, prune", "did you mean `images`?"),
    "system images --jsno": ("unknown option --jsno", "did you mean `--json`?"),
    "version --jsno": ("unknown option --jsno", "did you mean `--json`?"),
    "clean --xyz": ("unknown option --xyz", "`moat clean --help` tells more"),
}


@pytest.mark.parametrize("line", CASES)
def test_a_wrong_command_line(
    line: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error, hint = CASES[line]
    assert cli.main(line.split()) == 2
    assert capsys.readouterr() == ("", f"moat: error: {error}\nmoat: hint: {hint}\n")
    assert not (home / ".moat").exists()


def test_help_goes_to_stdout_with_status_0(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["system", "prune", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: moat system prune")


@pytest.mark.parametrize("line", ["help stop", "stop --help"])
def test_help_of_one_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(line.split())
    assert capsys.readouterr().out.startswith("usage: moat stop")


def test_what_other_programs_call_a_command_is_none_of_ours() -> None:
    meant = {words.split()[0] for words in cli._KNOWN_AS.values()}
    assert meant <= set(cli.COMMANDS)
    assert not set(cli._KNOWN_AS) & set(cli.COMMANDS)


def test_no_command_has_a_parser_of_its_own_kind() -> None:
    for path in (REPOSITORY / "moat").rglob("*.py"):
        assert "ArgumentParser(" not in path.read_text().replace("class Parser(argparse.ArgumentParser)", "")
