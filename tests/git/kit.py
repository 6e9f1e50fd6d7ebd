"""A repository with one commit, and a sandbox's word for what it could do to it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RUNTIMES = [
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("docker", marks=pytest.mark.docker),
]
WHO = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")


def git(*words: str, cwd: Path) -> str:
    """Git as the user runs it on the host."""
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *WHO, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"git {words}: {done.stderr}"
    return done.stdout


def repository(path: Path) -> Path:
    path.mkdir(parents=True)
    git("init", "--quiet", "--initial-branch=main", ".", cwd=path)
    (path / "file").write_text("one\n")
    git("add", "file", cwd=path)
    git("commit", "--quiet", "-m", "one", cwd=path)
    return path


def tries(*commands: str) -> str:
    """A shell script that prints `ok N` or `no N` for each command, in order."""
    return "\n".join(
        f"if ( {command} ) >/dev/null 2>&1; then echo ok {number}; else echo no {number}; fi"
        for number, command in enumerate(commands)
    )


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
