"""What is shipped: the wheel that users install, looked at and started."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import moat as package
from tests.conftest import BIN_VARIABLE, REPOSITORY, moat_program


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `.ci/test` built; where the tests run alone, one that is built now."""
    if BIN_VARIABLE in os.environ:
        directory = REPOSITORY / ".cache/dist"
    else:
        directory = tmp_path_factory.mktemp("dist")
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", directory, REPOSITORY],
            check=True,
            capture_output=True,
        )
    (found,) = directory.glob("*.whl")
    return found


@pytest.mark.timeout(300)
def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "moat").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == source
    assert "moat/py.typed" in names


@pytest.mark.timeout(300)
def test_the_wheel_is_called_by_our_distribution_name(wheel: Path) -> None:
    """`moat` on the package index is another project: ours must never be mistaken for it."""
    assert wheel.name.startswith(f"moat_sandbox-{package.__version__}-")
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    text = archive.read(metadata).decode()
    assert f"Name: {package.DISTRIBUTION}\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())


def test_the_program_under_test_runs_its_own_package(moat_bin: str, tmp_path: Path) -> None:
    """The end-to-end tests must not silently use the source tree in place of the installed wheel."""
    assert moat_bin == moat_program()
    python = Path(moat_bin).parent / "python"
    done = subprocess.run(
        [python, "-c", "import moat; print(moat.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    installed = Path(done.stdout.strip())
    if BIN_VARIABLE in os.environ:
        assert REPOSITORY / "moat" not in installed.parents
        assert python.parent.parent in installed.parents
    else:
        assert installed == REPOSITORY / "moat/__init__.py"


def test_version_is_told(moat_bin: str) -> None:
    done = subprocess.run([moat_bin, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"moat {package.__version__}\n"
