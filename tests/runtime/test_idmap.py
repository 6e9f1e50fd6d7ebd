"""Idmapped mounts, as the launcher makes them, in a process of its own (they need a mount namespace)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CODE = """
import json, os, sys
from moat.runtime import idmap
from moat.runtime.namespace import _drop
source, uid = sys.argv[1], int(sys.argv[2])
tree = idmap.clone(os.open(source, os.O_PATH))
try:
    idmap.show_as(tree, uid, uid)
except OSError as error:
    print(json.dumps({"error": error.errno}))
    sys.exit()
idmap.private_mounts("/tmp")
idmap.attach(tree, "/tmp/0")
os.close(tree)
mounts = open("/proc/self/mountinfo").read().count(" /tmp/0 ")
_drop(uid)
place = "/tmp/0"
found = {"mounts": mounts, "ids": [os.getuid(), os.getgid(), os.getgroups()]}
if os.path.isdir(place):
    found["shown"] = {name: [os.stat(f"{place}/{name}").st_uid, os.stat(f"{place}/{name}").st_gid] for name in os.listdir(place)}
    open(f"{place}/new", "w").close()
    os.mkdir(f"{place}/newdir")
    os.symlink("x", f"{place}/newlink")
    for action in (lambda: os.chown(f"{place}/new", 0, 0), lambda: os.setuid(0), lambda: open(f"{place}/foreign", "a")):
        try:
            action()
            found.setdefault("done", []).append(str(action))
        except OSError:
            pass
else:
    with open(place, "a") as file:
        file.write("more")
    found["shown"] = os.stat(place).st_uid
print(json.dumps(found))
"""


def mapped(source: Path, uid: int = 54321) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(source), str(uid)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_private_directory_of_root_is_the_agents_inside_and_roots_on_disk(tmp_path: Path) -> None:
    place = tmp_path / "workspace"
    place.mkdir(mode=0o700)
    (place / "mine").write_text("x")
    (place / "foreign").write_text("x")
    os.chown(place / "foreign", 1000, 1000)
    found = mapped(place)
    assert found["ids"] == [54321, 54321, []]
    assert found["shown"]["mine"] == [54321, 54321]
    assert found["shown"]["foreign"] == [65534, 65534], "nobody's: neither readable as owner nor writable"
    assert "done" not in found, "no chown to another, no way back to root, no foreign file"
    for name in ("new", "newdir", "newlink"):
        info = (place / name).lstat()
        assert (info.st_uid, info.st_gid) == (0, 0)


def test_the_owner_may_be_somebody_else_than_root(tmp_path: Path) -> None:
    place = tmp_path / "workspace"
    place.mkdir(mode=0o700)
    os.chown(place, 1000, 1001)
    mapped(place)
    info = (place / "new").stat()
    assert (info.st_uid, info.st_gid) == (1000, 1001)


def test_a_single_file_is_mapped_too(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one ")
    file.chmod(0o600)
    assert mapped(file)["shown"] == 54321
    assert file.read_text() == "one more"


def test_nothing_is_seen_on_the_host(tmp_path: Path) -> None:
    def mounts() -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if line.split()[4] in {"/tmp", "/tmp/0"} or str(tmp_path) in line]

    before = mounts()
    assert mapped(tmp_path)["mounts"] == 1
    assert mounts() == before


def test_a_mount_below_the_workspace_is_taken_along(tmp_path: Path) -> None:
    place = tmp_path / "workspace"
    (place / "cache").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place / "cache")], check=True)
    try:
        (place / "cache/file").write_text("x")
        found = mapped(place)
        assert found["shown"]["cache"] == [54321, 54321]
    finally:
        subprocess.run(["umount", str(place / "cache")], check=True)


def test_a_file_system_without_the_feature_is_an_error_and_not_a_plain_mount(tmp_path: Path) -> None:
    place = tmp_path / "plain"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", str(place)], check=True)
    try:
        assert mapped(place) == {"error": 22}
        assert os.listdir(place) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
