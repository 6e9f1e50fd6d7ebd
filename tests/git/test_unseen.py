"""Git on the host does not run, for Moat, what a run wrote into a repository of its own making."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.git.kit import git, repository

Moat = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.embedded
MAKE = """
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.org
git init -q . && echo '* filter=x' > .gitattributes && git add . && git commit -qm one
printf '%s' "$0" >> .git/config
"""


def configuration(ran: Path, where: str) -> str:
    command = f"\"sh -c 'touch {ran}; cat'\""
    text = f'[filter "x"]\n\tsmudge = {command}\n\tclean = {command}\n'
    return text if where == "config" else "[include]\n\tpath = ../included\n"


@pytest.mark.parametrize("where", ["config", "included"])
def test_filters_that_a_run_configured(moat: Moat, tmp_path: Path, where: str) -> None:
    """Seen failing without `unseen.check` in `moat wt`: the worktree's files went through the agent's command."""
    ran, place = tmp_path / "ran", tmp_path / "project"
    place.mkdir()
    script = MAKE if where == "config" else f"{MAKE}\nprintf '%s' \"$1\" > included\n"
    texts = (configuration(ran, where), configuration(ran, "config"))
    done = moat("run", str(place), "--runtime", "embedded", "--", "sh", "-c", script, *texts)
    assert done.returncode == 0, done.stderr
    for words in (("wt", "fix"), ("run", "--worktree", "fix")):
        refused = moat(*words, "--runtime", "embedded", "--", "true", cwd=place)
        assert not ran.exists()
        assert refused.returncode == 2
        assert "has commands that git would run" in refused.stderr
    file = place / ".git/config" if where == "config" else place / "included"
    file.touch()
    done = moat("wt", "fix", "--runtime", "embedded", "--", "true", cwd=place)
    assert done.returncode == 0, done.stderr
    assert ran.exists(), "what was looked at holds"


def test_filters_of_the_user(moat: Moat, tmp_path: Path) -> None:
    """Runs in the repository, before and after it was configured, do not matter: none could write there."""
    place = repository(tmp_path / "project")
    git("config", "filter.x.smudge", "cat", cwd=place)
    assert moat("run", str(place), "--runtime", "embedded", "--", "true").returncode == 0
    git("config", "filter.x.clean", "cat", cwd=place)
    done = moat("wt", "fix", "--runtime", "embedded", "--", "true", cwd=place)
    assert done.returncode == 0, done.stderr


def test_looking_at_a_worktree(moat: Moat, tmp_path: Path) -> None:
    """`git status` asks the filters too. The repository lies in a run's workspace, below its top: no fence."""
    ran, above = tmp_path / "ran", tmp_path / "above"
    place = repository(above / "project")
    (place / ".gitattributes").write_text("* filter=x\n")
    git("add", ".gitattributes", cwd=place)
    git("commit", "-qm", "two", cwd=place)
    assert moat("wt", "fix", "--runtime", "embedded", "--", "touch", "file", cwd=place).returncode == 0
    script = "printf '%s' \"$0\" >> project/.git/config"
    run = ("run", str(above), "--runtime", "embedded", "--", "sh", "-c", script, configuration(ran, "config"))
    assert moat(*run).returncode == 0
    cleaned = moat("wt", "clean", cwd=place)
    assert not ran.exists()
    assert "has commands that git would run" in cleaned.stderr
    (place / ".git/config").touch()
    assert moat("wt", "clean", cwd=place).returncode == 0
    assert ran.exists()
