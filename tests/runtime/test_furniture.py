"""What is unpacked in a container, and when nothing is: no engine."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from moat.runtime import furniture
from moat.runtime.container import Identity
from moat.runtime.premises import Premises
from moat.runtime.sandbox import HomeFile, Mount, SandboxSpec

AGENT = Identity(4321, 4321)
OPEN = Premises(b"", b"", open_home=True)


def unpacked(premises: Premises, *mounts: str, files: tuple[HomeFile, ...] = ()) -> list[tuple[str, int]]:
    spec = SandboxSpec(
        run_id="run_1",
        argv=("true",),
        workspace=Path("/w"),
        ca_bundle=b"",
        directory=Path("/d"),
        mounts=tuple(Mount(Path("/m"), target) for target in mounts),
        home_files=files,
    )
    data = furniture.home(spec, AGENT, premises)
    if not data:
        return []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {(m.uid, m.gid) for m in archive} == {(4321, 4321)}
        return [(member.name, member.mode) for member in archive]


def test_the_first_program_makes_home_where_it_can_and_nothing_is_in_it() -> None:
    assert unpacked(OPEN) == []
    assert unpacked(OPEN, "/data") == []


@pytest.mark.parametrize("target", ["/home/agent/.cache", "/home/agent/./.cache"])
def test_a_mount_in_home_wants_a_home_that_is_the_agent_s(target: str) -> None:
    """The engine makes what is missing on the way to a mount, and makes it root's."""
    assert unpacked(OPEN, target) == [("home/agent", 0o700)]


def test_so_does_a_home_file() -> None:
    found = unpacked(OPEN, files=(HomeFile(".config/x", b"1"),))
    assert found == [("home/agent", 0o700), ("home/agent/.config", 0o700), ("home/agent/.config/x", 0o600)]


def test_a_home_that_the_image_has_becomes_the_agent_s() -> None:
    assert unpacked(Premises(b"", b"")) == [("home/agent", 0o700)]
