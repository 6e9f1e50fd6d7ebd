"""Git as Moat itself runs it on the host: nothing that a repository's hooks say is run by it."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from moat.errors import StartError

_SECONDS = 300.0  # a checkout of a large repository
_QUICK = 20.0  # a question; git reads what is in a repository, and waits for ever at a pipe
_LARGEST_CONFIG = 1 << 20  # bytes
_QUIET = ("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false", "-c", "gc.auto=0")


class GitError(StartError):
    """Git refused; the message is git's own."""


class GitStuckError(GitError):
    """It did not end."""


def git(*words: str, cwd: Path, seconds: float = _SECONDS) -> str:
    """What `git words…` prints, with file names in the form of `os.fsdecode`. Raises GitError."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *_QUIET, *words],
            cwd=cwd,
            env=environment | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        raise GitError("git is not installed", hint="apt-get install git") from None
    except subprocess.TimeoutExpired:
        raise GitStuckError(
            f"git {words[0]} did not end within {seconds:.0f} s",
            hint=f"a pipe may stand in the place of a file: find {cwd}/.git -type p",
        ) from None
    if done.returncode != 0:
        raise GitError(_told(os.fsdecode(done.stderr)) or f"git {words[0]} failed")
    return os.fsdecode(done.stdout)


def asks(*words: str, cwd: Path) -> str | None:
    """The same where "no" is an answer: None instead of an error. Raises GitStuckError."""
    try:
        return git(*words, cwd=cwd, seconds=_QUICK)
    except GitStuckError:
        raise
    except GitError:
        return None


def configured(file: Path, *words: str) -> str | None:
    """What `git config words…` says about `file`, which a sandbox may have written; None: nothing.

    Asked from where no repository is, so that none is obeyed. A pipe would never answer, a link would be
    written through, and a giant be read to its end: none of them is asked.
    """
    try:
        info = os.lstat(file)
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST_CONFIG:
        return None
    return asks("config", "--file", str(file), *words, cwd=Path("/"))


def _told(complaint: str) -> str:
    """The last thing that git complained about, without its own word for it."""
    lines = [line for line in complaint.splitlines() if line.startswith(("fatal: ", "error: "))]
    return lines[-1].partition(": ")[2] if lines else complaint.strip()
