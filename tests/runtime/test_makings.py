"""Volumes, `pre_run`, limits and dependencies of a run, as a user has them: in both runtimes."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moat.errors import StartError
from moat.paths import Home
from moat.runtime import storage, volumes
from tests.runtime import docker_kit
from tests.runtime.embedded_kit import EVERYBODY, SYSTEM_PYTHON, run as embedded_run, user_directory

Moat = Callable[..., subprocess.CompletedProcess[str]]
BOTH = pytest.mark.parametrize("runtime", ["docker", "embedded"])
pytestmark = [pytest.mark.docker, pytest.mark.embedded, pytest.mark.timeout(300)]

FILE = """\
name: makings
volumes:
  - {name: cache, target: /home/agent/.cache}
  - {name: kept, target: /data, readonly: true}
  - {name: modules, target: /workspace/node_modules}
hooks: {pre_run: "cat; echo hooked; date > ~/.cache/stamp"}
container: {memory: 256m, cpus: 0.5}
"""
SCRIPT = """
cat; test -s ~/.cache/stamp && echo stamp; echo $USER > node_modules/who; stat -c %U ~/.cache /workspace/node_modules
touch /data/x 2>/dev/null || echo read-only
timeout 60 python3 -c 'x = bytearray(700 << 20)' >/dev/null 2>&1; test $? -ne 0 && echo limited
"""


@BOTH
def test_a_run_has_what_its_file_says(moat: Moat, tmp_path: Path, home: Path, runtime: str) -> None:
    """The hook takes neither stdin nor stdout; volumes belong to the agent and outlive the run; memory is held."""
    workspace = tmp_path / "workspace"
    (workspace / "agent.yaml").write_text(FILE)
    done = moat("run", "--runtime", runtime, "--", "sh", "-c", SCRIPT, input="in\n", timeout=200)
    assert done.stdout.split() == ["in", "stamp", "agent", "agent", "read-only", "limited"], done.stderr
    assert "hooked" in done.stderr
    place = home / ".moat/volumes/makings"
    assert (place / "modules/who").read_text() == "agent\n"
    assert list((workspace / "node_modules").iterdir()) == []
    listed = json.loads(moat("volumes", "list", "--json").stdout)
    assert [(v["volume"], v["in_use"]) for v in listed] == [
        ("cache", False),
        ("kept", False),
        ("modules", False),
    ]
    again = moat("run", "--runtime", runtime, "--accept-config", "--", "cat", "node_modules/who", timeout=100)
    assert again.stdout == "agent\n"
    assert moat("volumes", "prune", "--yes").returncode == 0
    assert not place.exists()


@BOTH
def test_a_failing_pre_run_is_told_and_the_command_never_starts(
    moat: Moat, tmp_path: Path, runtime: str
) -> None:
    (tmp_path / "workspace/agent.yaml").write_text("hooks: {pre_run: 'false; echo no'}")
    done = moat("run", "--runtime", runtime, "--", "echo", "started", timeout=200)
    assert (done.returncode, done.stdout) == (1, "")
    assert "moat: error: hooks.pre_run failed with status 1\n" in done.stderr
    assert "moat: hint: the command was not started: echo started\n" in done.stderr


def test_embedded_has_what_needs_no_root(moat: Moat, tmp_path: Path) -> None:
    text = "dependencies: [node@22, npm:semver@7, ruff, black, pip:tabulate, git]"
    (tmp_path / "workspace/agent.yaml").write_text(text)
    script = "node -p 6*7; semver -i minor 1.2.3; ruff --version; black --version; python3 -c 'import tabulate'; touch /opt/moat/x"
    done = moat("run", "--runtime", "embedded", "--", "sh", "-c", script, timeout=200)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["42", "1.3.0"]
    assert [line.split()[0].strip(",") for line in lines[2:4]] == ["ruff", "black"]
    assert "No module" not in done.stderr
    assert "Read-only file system" in done.stderr


def test_embedded_has_what_is_no_dependency_in_the_way_that_is_advised(moat: Moat, tmp_path: Path) -> None:
    """`moat deps info github` and `playwright`: fetched once, and kept; the browser of this machine starts."""
    text = """\
name: advised
dependencies: [chromium]
volumes: [{name: local, target: /home/agent/.local}]
hooks: {pre_run: 'test -e ~/.local/bin/tool || { mkdir ~/.local/bin; echo fetched >&2; cp made ~/.local/bin/tool; }'}
"""
    (tmp_path / "workspace/agent.yaml").write_text(text)
    (tmp_path / "workspace/made").write_text(
        "#!/bin/sh\nchromium --headless --no-sandbox --dump-dom 'data:text/html,<p>hi'\n"
    )
    (tmp_path / "workspace/made").chmod(0o755)
    first = moat("run", "--runtime", "embedded", "--", "tool")
    assert "<p>hi</p>" in first.stdout, first.stderr
    second = moat("run", "--runtime", "embedded", "--", "sh", "-c", "command -v tool")
    assert second.stdout == "/home/agent/.local/bin/tool\n"
    assert ["fetched" in done.stderr for done in (first, second)] == [True, False]


def test_embedded_tells_everything_that_cannot_be_had(moat: Moat, tmp_path: Path) -> None:
    text = "base_image: debian:12\ndependencies: [postgres, bats, python@3.42]\nhooks: {post_build: x}"
    (tmp_path / "workspace/agent.yaml").write_text(text)
    done = moat("run", "--runtime", "embedded", "--", "true")
    assert done.returncode == 3
    for part in (
        "base_image: an embedded",
        "hooks.post_build: an",
        "postgres: a service",
        "bats: not installed",
        "has no python3.42",
    ):
        assert part in done.stderr
    assert "moat: hint: apt-get install bats python3.42\n" in done.stderr


@pytest.mark.parametrize("who", EVERYBODY)
def test_embedded_holds_a_run_to_its_processors(who: str) -> None:
    """By control group where one can be made, else by affinity, which counts whole ones; it tells which."""
    code = "import os, time; a = time.time(); c = time.process_time()\nwhile time.time() - a < 2: pass\nprint((time.process_time() - c) / 2, len(os.sched_getaffinity(0)))"
    result = embedded_run(SYSTEM_PYTHON, "-c", code, who=who, cpus=0.3)
    used, processors = result.stdout.split()
    if result.limits["cpu"] == "control group":
        assert float(used) < 0.45
    else:
        assert (result.limits["cpu"], processors) == ("affinity", "1")


@pytest.mark.anyio
async def test_a_container_is_held_to_its_processors_and_memory() -> None:
    code = "import time; a = time.time(); c = time.process_time()\nwhile time.time() - a < 2: pass\nprint((time.process_time() - c) / 2)"
    result = await docker_kit.run("python3", "-c", code, cpus=0.3, memory=256 << 20)
    assert float(result.text) < 0.45
    assert (await docker_kit.run("python3", "-c", "bytearray(400 << 20)", memory=256 << 20)).status == 137
    assert (await docker_kit.run("true", cpus=1000.0)).status == 0


def test_an_image_that_a_container_uses_is_not_removed() -> None:
    """Only what carries Moat's label is listed at all; the engine itself refuses what is in use."""
    label = f"moat.test={secrets.token_hex(4)}"
    text = f'FROM moat-base:bookworm\nLABEL moat.image="1" moat.contents="a test" {label}\n'
    build = ["docker", "build", "-q", "-t", "moat-test-storage:1", "-"]
    subprocess.run(build, input=text, text=True, check=True, capture_output=True)
    command = ["docker", "create", "moat-test-storage:1"]
    made = subprocess.run(command, text=True, check=True, capture_output=True).stdout.strip()
    try:
        (found,) = [image for image in storage.images() if image.tag == "moat-test-storage:1"]
        assert (found.contents, found.in_use) == ("a test", True)
        assert not storage.remove_image(dataclasses.replace(found, tag=""))
    finally:
        subprocess.run(["docker", "rm", "-f", made], check=True, capture_output=True)
    (found,) = [image for image in storage.images() if image.tag == "moat-test-storage:1"]
    assert not found.in_use
    assert storage.remove_image(found)
    assert not [image for image in storage.images() if image.tag == "moat-test-storage:1"]
    assert not [image for image in storage.images() if image.tag.startswith(("moat-base", "debian"))]


def test_another_project_of_the_same_name_does_not_get_the_volumes(home: Path, tmp_path: Path) -> None:
    """Switched off by `_claimed` not comparing: the second project then gets the first one's directory."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path in (mine, other):
        path.mkdir()
    place = Home(home / ".moat")
    assert volumes._claimed(place, "app", mine) == volumes._claimed(place, "app", mine)
    with pytest.raises(StartError, match=f"the volumes of app belong to {mine}"):
        volumes._claimed(place, "app", other)
    git = ["git", "-C", str(mine), "-c", "user.name=a", "-c", "user.email=b"]
    tree = tmp_path / "tree"
    for words in (
        ["init", "-q"],
        ["commit", "-q", "--allow-empty", "-m", "x"],
        ["worktree", "add", "-q", str(tree)],
    ):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert volumes._claimed(place, "app", tree) == volumes._claimed(place, "app", mine)
    # An agent of the other project can write its own end of such a link; the repository does not know it.
    (other / ".git").write_text((tree / ".git").read_text())
    with pytest.raises(StartError):
        volumes._claimed(place, "app", other)


CLOSED = """
import os, sys
from pathlib import Path
from moat.paths import Home, private_dir
from moat.runtime import volumes
home = Home(Path(sys.argv[1]))
private_dir(home.root / "volumes/app/cache/inner")
os.chmod(home.root / "volumes/app/cache", 0)
(found,) = volumes.all_volumes(home)
volumes.remove(found)
print(os.listdir(home.root / "volumes"))
"""


def test_a_volume_whose_agent_closed_it_is_listed_and_removed() -> None:
    """As an ordinary user. Seen failing with "Permission denied" for every command about any volume, and for the next run."""
    with user_directory() as (directory, command):
        done = subprocess.run(
            [*command, "-c", CLOSED, str(directory / "home")], capture_output=True, text=True
        )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.timeout(20)
@pytest.mark.parametrize("lies", [".git", "elsewhere", "behind/gitdir"])
def test_what_an_agent_left_as_git_pointer_holds_no_run_up(tmp_path: Path, lies: str) -> None:
    """A pipe, a link to one, or a pointer to one. Seen hanging with `read_text`; of a link to /dev/zero it took all memory."""
    (tmp_path / "behind").mkdir()
    os.mkfifo(tmp_path / lies)
    if lies == "elsewhere":
        (tmp_path / ".git").symlink_to("elsewhere")
    elif lies != ".git":
        (tmp_path / ".git").write_text("gitdir: behind\n")
    assert volumes._project(tmp_path) == tmp_path


def test_a_mount_point_is_never_made_through_a_link(tmp_path: Path) -> None:
    """Switched off by dropping O_NOFOLLOW: the directory is then made outside of the workspace."""
    workspace, outside = tmp_path / "ws", tmp_path / "outside"
    for path in (workspace, outside):
        path.mkdir()
    (workspace / "a").symlink_to(outside)
    with pytest.raises(StartError, match="cannot be mounted"):
        volumes._make_mount_point(workspace, "a/b")
    assert list(outside.iterdir()) == []


def test_a_mount_point_that_becomes_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run in the workspace swaps it as soon as it is there. Seen failing with `os.chmod` of the name."""
    workspace, private = tmp_path / "workspace", tmp_path / "private"
    workspace.mkdir()
    private.mkdir(mode=0o700)
    made = os.mkdir

    def swapped(name: str, *args: Any, **more: Any) -> None:
        made(name, *args, **more)
        os.rmdir(workspace / "data")
        os.symlink(private, workspace / "data")

    monkeypatch.setattr(os, "mkdir", swapped)
    with pytest.raises(StartError, match="cannot be mounted"):
        volumes._make_mount_point(workspace, "data")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
