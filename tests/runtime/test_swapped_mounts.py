"""What is mounted is what was judged: a name that becomes a link meanwhile shows nothing else.

Whoever swaps is another run in the same workspace, or what it left on the host. It need not be lucky here: the
swap happens at the last moment before a runtime lets go of the names.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moat.config import parse_mount
from moat.errors import StartError, UsageError
from moat.paths import Home
from moat.runtime import engine_socket, new_run, sources
from moat.runtime.engine import Engine
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import Mount
from tests.runtime import docker_kit
from tests.runtime.embedded_kit import EVERYBODY, USER_UID, run

Swap = Callable[[], None]
SHOW = ("sh", "-c", "cat /data/*; ls -A /workspace /data; ls /proc/self/fd")


@pytest.fixture
def place() -> Iterator[Path]:
    """A project with `data`, and beside it what nobody may see; anybody may come here."""
    with tempfile.TemporaryDirectory(prefix="mt-swap-", dir="/tmp") as name:
        path = Path(name)
        for file in ("project/data/harmless", "private/key", "private/data/key"):
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text("harmless" if file.endswith("harmless") else "SECRET")
        for found in [path, *path.rglob("*")]:
            found.chmod(0o755 if found.is_dir() else 0o644)
            if os.geteuid() == 0:
                os.chown(found, USER_UID, USER_UID)
        yield path


def swap(path: Path, private: Path) -> None:
    path.rename(path.with_name("was"))
    path.symlink_to(private)


def before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, action: Swap) -> None:
    """Do `action` right before the first call of `owner.name`."""
    whole, once = getattr(owner, name), [action]

    def wrapped(*args: Any, **options: Any) -> Any:
        if once:
            once.pop()()
        return whole(*args, **options)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.embedded
@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("what", ["project/data", "project"])
def test_an_embedded_sandbox_shows_what_was_judged(place: Path, who: str, what: str) -> None:
    """Seen failing with names in place of descriptors: SECRET was printed, for root and for a user."""
    mounts = [(str(place / "project/data"), "/data", False)]
    result = run(
        *SHOW,
        who=who,
        workspace=str(place / "project"),
        mounts=mounts,
        swap=[str(place / what), str(place / "private")],
    )
    assert "SECRET" not in result.stdout + result.stderr
    assert "harmless" in result.stdout, result.stderr
    assert (place / what).is_symlink(), "it was swapped"
    assert result.stdout.split()[-4:] == ["0", "1", "2", "3"], "no descriptor of the host's is left"


@pytest.mark.docker
@pytest.mark.anyio
@pytest.mark.parametrize("what", ["project/data", "project"])
async def test_a_container_whose_mount_was_swapped_does_not_start(
    place: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen failing without `sandbox_init.compare`: SECRET was printed. The engine mounts by name."""
    before(monkeypatch, Engine, "start", lambda: swap(place / what, place / "private"))
    data = Mount(place / "project/data", "/data")
    result = await docker_kit.run(*SHOW, workspace=place / "project", mounts=(data,))
    assert (place / what).is_symlink(), "it was swapped"
    assert b"SECRET" not in result.stdout + result.stderr
    assert result.status == 125
    assert b"is not what was to be mounted there" in result.stderr


@pytest.mark.docker
@pytest.mark.anyio
async def test_roots_own_files_are_shown_by_descriptor(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen failing with `idmap.clone` of the name: SECRET was printed."""
    if os.geteuid() != 0:
        pytest.skip("only root's files are shown as somebody else's")
    subprocess.run(["chown", "-R", "0:0", place], check=True)
    before(monkeypatch, engine_socket, "shares_mounts", lambda: swap(place / "project", place / "private"))
    result = await docker_kit.run("sh", "-c", "cat key; cat data/*", workspace=place / "project")
    assert (place / "project").is_symlink(), "it was swapped"
    assert b"SECRET" not in result.stdout
    assert b"harmless" in result.stdout


def test_what_was_judged_and_has_become_a_link_is_refused(place: Path, home: Path) -> None:
    """Seen failing with `parse_mount` returning the name as it was written: `~/.ssh` would have been mounted."""
    (place / "project/link").symlink_to("data")
    judged = parse_mount("./link:/data", place / "project")
    assert judged.source == place / "project/data", "what is judged is what it leads to"
    swap(place / "project/data", place / "private")
    request = RunRequest(
        argv=("true",),
        workspace=place / "project",
        mounts=(Mount(judged.source, judged.target),),
        runtime="embedded",
    )
    with pytest.raises(UsageError, match="is a symbolic link, or lies below one"):
        new_run.checked(request, Home(home / ".moat"))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("link", "is a symbolic link"),
        ("link/key", "is a symbolic link"),
        ("project/../private", "not an absolute path"),
        ("pipe", "neither a directory nor a plain file"),
        ("nothing", "No such file"),
        ("project/data/harmless/below", "is a symbolic link, or lies below one"),
    ],
)
def test_no_component_of_a_source_is_followed(place: Path, path: str, reason: str) -> None:
    (place / "link").symlink_to("private")
    os.mkfifo(place / "pipe")
    count = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartError, match=reason):
        sources.hold(place / path)
    assert len(os.listdir("/proc/self/fd")) == count
