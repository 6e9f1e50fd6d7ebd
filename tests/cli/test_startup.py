"""The quick commands stay quick: what they import is fixed, so that no budget depends on a clock."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import moat

PACKAGE = Path(moat.__file__).parent
HEAVY = {
    "aiodocker", "aiohttp", "cryptography", "keyring", "prompt_toolkit", "ruamel", "uvloop",
    "anyio", "asyncio", "trio", "ssl", "http", "multiprocessing",
}  # fmt: skip

# What only a mistake, the end of a run or a mounted directory needs: 25 ms of every start.
LATER = {"tempfile", "random", "shutil", "secrets", "difflib", "ctypes"}

_LOADED = """
import sys
from moat.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
sys.stderr.write(repr([status, sorted(sys.modules)]))
"""


def loaded(*argv: str, home: Path) -> tuple[int, set[str], str]:
    """Exit status, names of the top-level modules loaded, stdout of `moat ARGV` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _LOADED, *argv],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "MOAT_HOME": str(home / ".moat")},
    )
    status, modules = ast.literal_eval(done.stderr.splitlines()[-1])
    return status, set(modules), done.stdout


def make_run(home: Path) -> None:
    """A finished run on disk, so that the commands have something to read."""
    directory = home / ".moat/runs/run_0123456789ab"
    directory.mkdir(parents=True, mode=0o700)
    (directory / "output.log").write_bytes(b"hello\n")


@pytest.mark.parametrize(
    "argv",
    [
        ("--help",),
        ("version",),
        ("list",),
        ("list", "--json"),
        ("list", "--help"),
        ("logs", "--help"),
        ("logs", "run_0123456789ab"),
        ("trace", "--help"),
        ("grant", "list"),
        ("grant", "--help"),
        ("doctor", "--help"),
        ("demo", "--help"),
    ],
    ids=" ".join,
)
def test_a_quick_command_imports_nothing_heavy(argv: Sequence[str], tmp_path: Path) -> None:
    make_run(tmp_path)
    _, modules, _ = loaded(*argv, home=tmp_path)
    assert "moat.cli" in modules
    assert not {name.partition(".")[0] for name in modules} & HEAVY


@pytest.mark.parametrize("command", ["run", "claude", "resume"])
def test_what_starts_runs_leaves_the_heavy_part_to_the_supervisor(command: str, tmp_path: Path) -> None:
    """`ssl` alone: it knows where this machine's certificates are."""
    status, modules, _ = loaded(command, "--help", home=tmp_path)
    assert status == 0
    assert not {name.partition(".")[0] for name in modules} & (HEAVY - {"ssl"})


def test_what_a_list_needs_is_little(tmp_path: Path) -> None:
    _, modules, _ = loaded("list", home=tmp_path)
    assert not modules & {"shutil", "difflib", "tempfile", "subprocess"}


def test_a_run_without_grants_imports_neither_what_gets_credentials_nor_what_carries_requests() -> None:
    program = "import sys, moat.runtime.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "moat.runtime.gateway" in modules
    assert not modules & {
        "moat.vault",
        "moat.proxy.server",
        "cryptography",
        "moat.vault.aws",
        "moat.vault.oauth",
        "configparser",
        "urllib.request",
        "xml",
        "email",
        *LATER,
    }


def test_what_makes_an_embedded_sandbox_imports_nothing_that_can_wait() -> None:
    program = (
        "import sys, moat.runtime.embedded, moat.runtime.git.guard, moat.runtime.snapshots.part; "
        "from moat.proxy.certs import RunCA; RunCA.generate('run'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "cryptography.hazmat.primitives.asymmetric.ec" in modules
    assert not modules & {*LATER, "cryptography.x509", "cryptography.hazmat.backends.openssl"}


def test_what_makes_a_container_imports_no_archives() -> None:
    program = "import sys, moat.runtime.docker, moat.runtime.image; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "moat.runtime.furniture" in modules
    assert not modules & {"tarfile", "http.client", *LATER - {"ctypes"}}  # it mounts


def test_stored_credentials_are_listed_without_the_grammar_of_configuration(tmp_path: Path) -> None:
    status, modules, _ = loaded("grant", "list", home=tmp_path)
    assert status == 0
    assert not modules & {"moat.config", *LATER}


def test_the_help_of_all_commands_needs_no_parser(tmp_path: Path) -> None:
    status, modules, out = loaded("--help", home=tmp_path)
    assert status == 0
    assert "usage: moat <command> [options]" in out
    ours = {name for name in modules if name.partition(".")[0] == "moat"}
    assert ours == {"moat", "moat.cli"}
    assert not modules & {"argparse", "json", "subprocess", "importlib.metadata", "typing"}


def test_no_credential_store_is_touched_by_listing(tmp_path: Path) -> None:
    status, modules, out = loaded("grant", "list", "--json", home=tmp_path)
    assert (status, json.loads(out)) == (0, [])
    assert not modules & {"keyring", "cryptography", "jeepney", "secretstorage"}


def overwritten(place: Path, mark: str) -> Path:
    """An environment in which another distribution has replaced `moat/__init__.py`."""
    shutil.copytree(PACKAGE, place / "moat", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "moat/__init__.py").write_text(f'__version__ = "0.10.1"\n{mark}')
    return place


@pytest.mark.parametrize("mark", ["", 'DISTRIBUTION = "moat"\n'])
def test_another_projects_package_in_the_same_environment_is_noticed(mark: str, tmp_path: Path) -> None:
    place = overwritten(tmp_path / "site", mark)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from moat.cli import main; sys.exit(main(['version']))"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(place)},
    )
    assert done.returncode == 3
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == f"moat: error: the package `moat` at {place}/moat/__init__.py is not Moat's"
    assert second.startswith("moat: hint: another distribution overwrote it")


@pytest.mark.embedded
@pytest.mark.parametrize(
    "argv",
    [("--version",), ("list",), ("grant", "list"), ("run", "--runtime", "embedded", "--", "true")],
    ids=" ".join,
)
def test_a_workspace_cannot_put_code_into_moat(argv: Sequence[str], tmp_path: Path, moat_bin: str) -> None:
    """The current directory is the agent's: a `moat` or `json` package in it must not be imported."""
    workspace, mark = tmp_path / "workspace", tmp_path / "planted"
    for name in ("moat", "json", "argparse", "sitecustomize", "asyncio", "anyio"):
        (workspace / name).mkdir(parents=True)
        (workspace / name / "__init__.py").write_text(f"open({str(mark)!r}, 'a').write(__file__)\n")
    done = subprocess.run([moat_bin, *argv], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not mark.exists(), mark.read_text()


@pytest.mark.parametrize(("argv", "near"), [(["lst"], "list"), (["attch"], "attach")], ids=["lst", "attch"])
def test_an_unknown_command_gets_a_suggestion(
    argv: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from moat.cli import main

    assert main(argv) == 2
    assert f"did you mean `moat {near}`?" in capsys.readouterr().err


_INTERRUPTED = """
import sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "json":
            raise KeyboardInterrupt
class Descriptor:
    def __set_name__(self, owner, name):
        raise KeyboardInterrupt
def make(argv):
    class Command:
        attribute = Descriptor()
from moat.cli import main
if sys.argv[1] == "import":
    sys.meta_path.insert(0, Finder())
    sys.exit(main(["list"]))
from moat.cli.output import call
sys.modules["command"] = type(sys)("command")
sys.modules["command"].main = make
sys.exit(call("command", []))
"""


@pytest.mark.parametrize("where", ["import", "class"])
def test_an_interrupt_while_a_command_is_loaded_leaves_no_traceback(where: str) -> None:
    """Seen to fail. Up to Python 3.11 it comes as a RuntimeError when it falls into the making of a class."""
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED, where], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
