"""The rules that machines can check, as tests: style, types, import directions, shell scripts, paths."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BIN = Path(sys.executable).parent
SCRIPTS = ("demo", "test", "run", "lib.sh", "base-image")


def tool(*argv: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False)


def tracked() -> list[str]:
    return tool("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")[:-1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["ruff", "check", "."], id="ruff"),
        pytest.param(["ruff", "format", "--check", "."], id="format"),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["mypy", "tests/typing/api.py", "examples"], id="mypy-public-api"),
        pytest.param(["lint-imports"], id="imports"),
    ],
)
def test_tool_is_content(argv: list[str]) -> None:
    done = tool(str(BIN / argv[0]), *argv[1:])
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_scripts_are_sound() -> None:
    done = tool("shellcheck", "--external-sources", "--severity=warning", *(f".ci/{s}" for s in SCRIPTS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_step_that_fails_stops_the_script() -> None:
    """`set -e` is off inside conditions: a failing command in the middle of a step must still end it."""
    done = tool("bash", "-c", "source .ci/lib.sh; f() { false; echo reached; }; step sample f; echo went on")
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert "reached" not in done.stdout + done.stderr
    assert "sample failed" in done.stderr


def test_ci_runs_exactly_the_second_command() -> None:
    lines = (REPOSITORY / ".ci/run").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'exec bash "$(dirname "${BASH_SOURCE[0]}")/test" "$@"'
    ]


def test_no_path_of_this_machine_is_in_the_tree() -> None:
    """A home directory or this checkout's own place in a file would work on one machine only."""
    machine = re.compile(rf"{re.escape(str(REPOSITORY))}\b|/home/(?!agent\b)[a-z]+/|/root/")
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in tracked()
        for number, line in enumerate(_text(REPOSITORY / name).splitlines(), 1)
        if machine.search(line) and not name.startswith("tests/")
    ]
    assert not found, "\n".join(found)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (UnicodeDecodeError, FileNotFoundError):
        return ""


def test_no_interpreter_is_started_that_imports_from_the_current_directory() -> None:
    """The current directory is most often a workspace. Seen failing with a snapshot of the menu: `-m moat`."""
    for path in (REPOSITORY / "moat").rglob("*.py"):
        for after in re.findall(r"sys\.executable,\s*(\S+)", path.read_text()):
            assert after in {'"-P",', '"-I",'}, f"{path}: sys.executable is followed by {after}"


def test_every_program_is_started_somewhere() -> None:
    """Without `cwd` it stands where the user does, most often in a workspace, and obeys the settings there."""
    starts = {"subprocess.run", "subprocess.Popen", "anyio.open_process", "webbrowser.open"}
    # The user's own program, and Moat itself, which finds a relative MOAT_HOME from where the user is.
    the_users_own = {"moat/cli/proxy.py", "moat/cli/session_menu.py"}
    for path in (REPOSITORY / "moat").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in starts:
                place = str(path.relative_to(REPOSITORY))
                told = any(word.arg == "cwd" for word in call.keywords)
                assert told or place in the_users_own, f"{place}:{call.lineno} has no cwd"


def test_nothing_unfinished_is_in_the_package() -> None:
    """A command or an interface that is not there yet is absent, not a stub."""
    marks = re.compile(r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b")
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in sorted((REPOSITORY / "moat").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_command_of_the_table_is_there() -> None:
    from moat.cli import COMMANDS

    missing = [
        name
        for name, (module, _) in COMMANDS.items()
        if not os.path.exists(REPOSITORY / (module.replace(".", "/") + ".py"))
    ]
    assert not missing


def test_internal_links_of_the_documents_resolve() -> None:
    link = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")
    broken = [
        f"{name}: {target}"
        for name in tracked()
        if name.endswith(".md")
        for target in link.findall(_text(REPOSITORY / name))
        if not (REPOSITORY / name).parent.joinpath(target).exists()
    ]
    assert not broken, "\n".join(broken)
