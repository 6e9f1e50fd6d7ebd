"""`moat doctor` tries things for real; each thing that is broken is found, with the way to fix it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.cli import doctor, doctor_home
from moat.errors import MoatError
from moat.journal import ledger
from moat.paths import Home, private_dir
from moat.runtime.endpoints import ca
from moat.runtime.size import Size
from tests.conftest import REPOSITORY
from tests.journal.kit import small_disk

Moat = Callable[..., subprocess.CompletedProcess[str]]
STATUSES = {"ok", "warn", "fail"}


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in json.loads(done.stdout)}


def without(directory: Path, *programs: str) -> dict[str, str]:
    """The environment, with a PATH that lacks some programs."""
    directory.mkdir()
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            link = directory / program.name
            if program.name not in programs:
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return os.environ | {"PATH": str(directory)}


@pytest.mark.docker
@pytest.mark.embedded
def test_a_machine_where_everything_works(moat: Moat, claude_binary: str, tmp_path: Path) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    (place / "claude").symlink_to(claude_binary)
    environment = os.environ | {"MOAT_KEYRING_BACKEND": "file", "PATH": f"{place}:{os.environ['PATH']}"}
    done = moat("doctor", "--json", timeout=110, env=environment)
    found = rows(done)
    assert list(found) == [
        "moat", "state", "config", "disk", "journal", "embedded", "docker", "sandbox (embedded)",
        "sandbox (docker)", "keyring", "grants", "claude", "endpoints",
    ]  # fmt: skip
    wrong = [row for name, row in found.items() if row["status"] != "ok" and name not in {"grants", "disk"}]
    assert not wrong
    assert found["grants"]["fix"] == "moat grant anthropic"
    assert "2.1.330" in found["claude"]["detail"]
    assert done.returncode == 0


@pytest.mark.embedded
def test_text_has_one_line_a_row_and_a_fix_below_it(moat: Moat) -> None:
    done = moat("doctor", timeout=110, env=os.environ | {"DOCKER_HOST": "unix:///nonexistent/docker.sock"})
    lines = done.stdout.splitlines()
    assert all(line.split()[0] in {*STATUSES, "fix:"} for line in lines)
    docker = next(i for i, line in enumerate(lines) if line.startswith("warn  docker"))
    assert "/nonexistent/docker.sock" in lines[docker]
    assert "\x1b" not in done.stdout
    assert done.returncode == 0, "one runtime is enough"


def test_on_a_terminal_lines_fit_and_words_stay_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("moat.cli.display.size", lambda: Size(80, 24))
    row = doctor.Row("state", "fail", "a word or two " * 6 + "\nsecond " + "/very/long" * 9, "moat list " * 7)
    doctor._show(row)
    assert len(capsys.readouterr().out.splitlines()) == 3, "a pipe gets whole lines"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    doctor._show(row)
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith("fail  state               a word")
    assert all(line.startswith(" " * 26) and line[26] != " " for line in more)
    assert all(len(line) <= 80 for line in more if "/very" not in line)
    assert any(line.strip() == "/very/long" * 9 for line in more)


def test_without_any_runtime_it_fails(moat: Moat, tmp_path: Path) -> None:
    environment = without(tmp_path / "bin", "bwrap") | {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    done = moat("doctor", "--json", timeout=110, env=environment)
    found = rows(done)
    assert done.returncode == 1
    assert [found[name]["status"] for name in ("embedded", "docker")] == ["fail", "fail"]
    assert "bubblewrap" in found["embedded"]["fix"]
    assert not any(name.startswith("sandbox") for name in found)


def test_a_missing_keyring_is_told_with_the_way_around(moat: Moat) -> None:
    done = moat("doctor", "--json", timeout=110)
    keyring = rows(done)["keyring"]
    assert keyring["status"] == "warn"
    assert "MOAT_KEYRING_BACKEND=file" in keyring["fix"]


def test_a_wrong_user_configuration_fails_with_its_place(moat: Moat, home: Path) -> None:
    state = home / ".moat"
    state.mkdir(mode=0o700)
    (state / "config.yaml").write_text("upstream:\n  ca_bundel: /x\n")
    done = moat("doctor", "--json", timeout=110)
    config = rows(done)["config"]
    assert (config["status"], done.returncode) == ("fail", 1)
    assert "config.yaml:2:3" in config["detail"]
    assert "ca_bundle" in config["detail"]


def test_a_state_directory_that_cannot_be_written_fails(moat: Moat, home: Path) -> None:
    (home / ".moat").write_text("a file where a directory should be")
    done = moat("doctor", "--json", timeout=110)
    state = rows(done)["state"]
    assert (state["status"], state["fix"]) == ("fail", "set MOAT_HOME to a directory that you can write")
    assert done.returncode == 1


@pytest.mark.embedded
def test_a_bubblewrap_that_starts_nothing_fails(moat: Moat, tmp_path: Path) -> None:
    """It is there and can be executed; only starting a namespace with it shows that it is no use."""
    program = tmp_path / "bin"
    environment = without(program, "bwrap")
    wrapper = program / "bwrap"
    wrapper.write_text("#!/bin/sh\nexit 1\n")
    wrapper.chmod(0o755)
    done = moat("doctor", "--json", timeout=110, env=environment | {"DOCKER_HOST": "unix:///nonexistent"})
    found = rows(done)
    assert done.returncode == 1
    assert found["embedded"]["status"] == "fail"


def test_it_leaves_nothing_behind(moat: Moat, home: Path) -> None:
    moat("doctor", timeout=110)
    left = [path for path in (home / ".moat").rglob("*") if path.is_file()]
    assert not [path for path in left if "stage-" in str(path) or "doctor-" in path.name]
    assert not (REPOSITORY / "doctor").exists()


def test_the_journal_its_key_the_room_and_endpoints(home: Path, tmp_path: Path) -> None:
    """Each state that a user can get into, from the rows themselves: a sandbox need not be tried for it."""
    place = Home.from_environment()
    private_dir(place.root)
    assert doctor_home.journal(place).detail.startswith("no run yet")
    assert doctor_home.endpoints(place).detail.startswith("none yet")
    ledger.note(place, "snapshot.taken", workspace="/w", id="snap_1")
    row = doctor_home.journal(place)
    assert (row.status, "1 entries, signed with ed25519:" in row.detail) == ("ok", True)
    book = ledger.path_of(place)
    book.write_text(book.read_text().replace("snap_1", "snap_2"))
    row = doctor_home.journal(place)
    assert (row.status, row.fix.startswith("moat audit --verify --all")) == ("fail", True)
    (place.journal / "key").chmod(0o644)
    with pytest.raises(MoatError, match="others may read"):
        doctor_home.journal(place)
    ca.ensure(place)
    row = doctor_home.endpoints(place)
    assert row.detail == "no gateway runs now; its certificate is trusted by nobody"
    assert (row.status, row.fix) in {("warn", "moat trust install"), ("ok", "")}  # ok: no store is here
    with small_disk(tmp_path / "disk") as disk:
        row = doctor_home.room(Home(disk))
    assert (row.status, row.fix.partition(",")[0]) == ("fail", "moat clean")
