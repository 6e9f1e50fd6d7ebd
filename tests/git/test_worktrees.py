"""`moat wt`: a worktree for each branch, the repository behind it out of reach, no work ever lost."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.runtime.git import command, worktrees
from tests.git.kit import RUNTIMES, git, repository, tries, until


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return repository(tmp_path / "project")


def trees(moat: Callable[..., object], place: Path) -> dict[str, Path]:
    done = moat("wt", "list", "--json", cwd=place, errors="surrogateescape")
    assert done.returncode == 0, done.stderr
    return {row["branch"]: Path(row["path"]) for row in json.loads(done.stdout)}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_repository_behind_a_worktree_is_fenced(
    runtime: str, moat: Callable[..., object], project: Path, tmp_path: Path
) -> None:
    """Seen failing with the common directory mounted writable (`fence.mounts`), and with `worktrees` left out."""
    git("worktree", "add", "--quiet", "-b", "other", str(tmp_path / "elsewhere"), cwd=project)
    common = project / ".git"
    attacks = (
        f"echo x > {common}/hooks/pre-commit",
        f"echo x >> {common}/config",
        f"mv {common}/config {common}/c",
        f"echo x > {common}/HEAD",
        f"echo x > {common}/index",
        f"rm -rf {common}/worktrees/elsewhere",
        f"echo x > {common}/worktrees/elsewhere/HEAD",
        f"echo x > {common}/config.worktree",
        f"echo x > {common}/packed-refs",
        "echo 'gitdir: /tmp' > .git",
        "rm .git",
        f"echo x > {common}/worktrees/fix/commondir",
        f"echo x > {common}/worktrees/fix/gitdir",
        f"rm $(cat {common}/worktrees/fix/gitdir)",  # the same `.git` at its other path
        f"echo 'gitdir: /tmp' > $(cat {common}/worktrees/fix/gitdir)",
        f"echo x > {common}/commondir",
        f"ls {project}/file",  # of the main working tree nothing is shown
    )
    script = f"{tries(*attacks)}\necho done"
    done = moat("wt", "feature/fix", "--runtime", runtime, "--", "sh", "-c", script, cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*(f"no {number}" for number in range(len(attacks))), "done"]
    assert (tmp_path / "elsewhere/file").exists()
    assert git("status", "--porcelain", cwd=tmp_path / "elsewhere") == ""


@pytest.mark.embedded
def test_a_branch_is_made_worked_on_and_kept(moat: Callable[..., object], project: Path) -> None:
    script = "git config --global user.name A; git config --global user.email a@example.org; echo two > new; git add new; git commit -qm two; git status --short"
    done = moat("wt", "feature/Fix", "--runtime", "embedded", "--", "sh", "-c", script, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "made the worktree" in done.stderr
    assert git("log", "--format=%s", "feature/Fix", cwd=project).splitlines() == ["two", "one"]
    assert git("log", "--format=%s", "main", cwd=project).splitlines() == ["one"]
    run = json.loads(moat("list", "--json").stdout)[0]
    assert run["name"] == "project-feature-fix"
    assert run["worktree"] == "feature/Fix"
    assert "WORKTREE" in moat("list").stdout
    path = trees(moat, project)["feature/Fix"]
    assert Path(run["workspace"]) == path
    kept = moat("wt", "clean", cwd=project)
    assert kept.returncode == 0
    assert "1 commit only on feature/Fix, not pushed" in kept.stderr
    assert path.exists()
    git("merge", "--quiet", "feature/Fix", cwd=project)
    (path / "notes").write_text("not committed")
    assert "1 uncommitted change" in moat("wt", "clean", cwd=project).stderr
    (path / "notes").unlink()
    assert "would remove" in moat("wt", "clean", "--dry-run", cwd=project).stdout
    assert path.exists()
    assert "removed" in moat("wt", "clean", cwd=project).stdout
    assert not path.exists()
    assert "feature/Fix" in git("branch", "--list", cwd=project), "branches are never deleted"


@pytest.mark.embedded
def test_a_worktree_has_one_run(moat: Callable[..., object], project: Path) -> None:
    first = moat("run", "-d", "--worktree", "b", "--runtime", "embedded", "--", "sleep", "60", cwd=project)
    assert first.returncode == 0, first.stderr
    try:
        second = moat("run", "--worktree", "b", "--", "true", cwd=project)
        assert second.returncode == 3
        assert "is active in the worktree of b" in second.stderr
        assert "moat attach run_" in second.stderr
        assert "is active there" in moat("wt", "clean", cwd=project).stderr
    finally:
        moat("stop", "project-b")
    assert not moat("wt", "clean", cwd=project).stderr


def test_what_git_cannot_have_is_explained(
    moat: Callable[..., object], project: Path, tmp_path: Path
) -> None:
    taken = moat("run", "--worktree", "main", "--", "true", cwd=project)
    assert taken.returncode == 3
    assert f"branch main is checked out in {project}" in taken.stderr
    project = project.rename(project.with_name("it's mine"))
    taken = moat("run", "--worktree", "main", "--", "true", cwd=project)
    assert f"`moat claude {shlex.quote(str(project))}`" in taken.stderr
    bad = moat("run", "--worktree", "a..b", "--", "true", cwd=project)
    assert bad.returncode == 2
    assert "'a..b' is not a branch name" in bad.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    nowhere = moat("run", "--worktree", "b", "--", "true", cwd=empty)
    assert nowhere.returncode == 2
    assert "is not in a git repository" in nowhere.stderr
    git("init", "--quiet", ".", cwd=empty)
    unborn = moat("run", "--worktree", "b", "--", "true", cwd=empty)
    assert unborn.returncode == 2
    assert "has no commit" in unborn.stderr


@pytest.mark.embedded
def test_odd_repositories(moat: Callable[..., object], project: Path, tmp_path: Path) -> None:
    """A bare one, one whose path is no UTF-8, a detached HEAD, a worktree that was deleted by hand."""
    bare = tmp_path / "bare.git"
    git("clone", "--quiet", "--bare", str(project), str(bare), cwd=tmp_path)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff odd'name"))
    git("clone", "--quiet", str(project), os.fspath(odd), cwd=tmp_path)
    git("checkout", "--quiet", "--detach", cwd=odd)
    base = tmp_path / "home/.moat/worktrees"
    for place in (bare, odd):
        words = (
            "run",
            "--worktree",
            "b",
            "--runtime",
            "embedded",
            "--",
            "git",
            "status",
            "--short",
            "--branch",
        )
        done = moat(*words, cwd=place)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "## b\n"
        (path,) = trees(moat, place).values()
        assert path.is_relative_to(base)
        shutil.rmtree(path)
        assert moat(*words, cwd=place).returncode == 0, "deleted by hand: made again"


@pytest.mark.embedded
def test_submodules_work_on_both_sides(moat: Callable[..., object], project: Path, tmp_path: Path) -> None:
    library = repository(tmp_path / "library")
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib", cwd=project)
    git("commit", "--quiet", "-m", "submodule", cwd=project)
    done = moat("run", "--worktree", "s", "--runtime", "embedded", "--", "true", cwd=project)
    assert done.returncode == 0, done.stderr
    path = trees(moat, project)["s"]
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", cwd=path)
    script = "git -C lib log --format=%s && git submodule status"
    inside = moat("run", "--worktree", "s", "--runtime", "embedded", "--", "sh", "-c", script, cwd=project)
    assert inside.returncode == 0, inside.stderr
    assert inside.stdout.splitlines()[0] == "one"
    assert git("-C", "lib", "log", "--format=%s", cwd=path) == "one\n"


@pytest.mark.embedded
def test_the_file_of_the_main_working_tree_counts_for_a_worktree_without_one(
    moat: Callable[..., object], project: Path
) -> None:
    (project / "agent.yaml").write_text("name: shop\nenv: {FROM: main}\ncommand: [sh, -c, 'echo $FROM']\n")
    done = moat("run", "--worktree", "b", "--runtime", "embedded", cwd=project)
    assert (done.returncode, done.stdout) == (0, "main\n"), done.stderr
    (trees(moat, project)["b"] / "agent.yaml").write_text(
        "env: {FROM: its own}\ncommand: [sh, -c, 'echo $FROM']\n"
    )
    own = moat("run", "--worktree", "b", "--runtime", "embedded", "--accept-config", cwd=project)
    assert (own.returncode, own.stdout) == (0, "its own\n"), own.stderr
    assert {run["name"] for run in json.loads(moat("list", "--json").stdout)} >= {"shop-b", "project-b"}


@pytest.mark.embedded
def test_what_git_can_and_cannot_do_in_a_worktree(moat: Callable[..., object], project: Path) -> None:
    """The table in docs/worktrees.md."""
    works = (
        "echo two > new && git add new && git commit -qm two",
        "git branch side",
        "echo x >> file && git stash -q",
        "git stash pop -q && grep x file && git checkout -q file",
        "git tag v1",
        "git rebase -q main",
        "git merge -q side",
        "git fetch -q .",
        "git switch -q -c another",
        "git worktree prune && git status",
    )
    refused = (
        "git branch -D side",
        "git tag -d v1",
        "git gc -q",
        "git pack-refs --all",
        "git config user.name x",
        "git bisect start",
    )
    script = (
        "git config --global user.name A; git config --global user.email a@example.org\n"
        f"{tries(*works, *refused)}\ngit gc"
    )
    done = moat("wt", "b", "--runtime", "embedded", "--", "sh", "-c", script, cwd=project)
    expected = [f"ok {number}" for number in range(len(works))]
    expected += [f"no {number}" for number in range(len(works), len(works) + len(refused))]
    assert done.stdout.splitlines() == expected, done.stderr
    assert "Read-only file system" in done.stderr
    assert git("rev-parse", "side", "v1", cwd=project)
    assert git("fsck", cwd=project) is not None


@pytest.mark.embedded
def test_the_command_of_the_file(moat: Callable[..., object], project: Path) -> None:
    (project / "agent.yaml").write_text("command: [sh, -c, 'git branch --show-current']\n")
    git("add", "agent.yaml", cwd=project)
    git("commit", "--quiet", "-m", "file", cwd=project)
    done = moat("wt", "b", "--runtime", "embedded", cwd=project)
    assert (done.returncode, done.stdout) == (0, "b\n"), done.stderr
    asked = moat("wt", "b", "--runtime", "embedded", "-p", "hello", cwd=project)
    assert "No Claude Code credentials found" in asked.stderr, "a prompt is for Claude Code"


@pytest.mark.embedded
def test_a_head_that_is_a_pipe_holds_nobody_up(moat: Callable[..., object], project: Path) -> None:
    script = "cd $(git rev-parse --git-dir) && rm HEAD && mkfifo HEAD"
    assert moat("wt", "b", "--runtime", "embedded", "--", "sh", "-c", script, cwd=project).returncode == 0
    done = moat("wt", "list", cwd=project, timeout=20)
    assert "no worktree" in done.stdout
    assert "look at it yourself" in moat("wt", "clean", cwd=project, timeout=20).stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_logs_of_other_branches_are_out_of_reach(
    runtime: str, moat: Callable[..., object], project: Path, tmp_path: Path
) -> None:
    """Git on the host appends to what a log leads to: a link made here would be written through by a commit on `main`.

    Seen failing with `logs` among the shared directories of `fence`: the commit is then in `victim`, during the run.
    """
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    tip = git("rev-parse", "HEAD", cwd=project).strip()
    logs = project / ".git/logs"
    before = (logs / "HEAD").read_bytes()
    script = f"""cd {logs}; rm HEAD; ln -s {victim} HEAD; ln -sf {victim} refs/heads/main; mkfifo pipe
echo '{tip} {tip} A <a@example.org> 1 +0000	moved' >> refs/heads/fix; printf 'no log\\033' > refs/heads/odd
touch /workspace/ready; while [ -e /workspace/ready ]; do ln -sf {victim} HEAD; sleep 0.05; done"""
    started = moat("wt", "fix", "-d", "--runtime", runtime, "--", "sh", "-c", script, cwd=project)
    assert started.returncode == 0, started.stderr
    path = trees(moat, project)["fix"]
    until((path / "ready").exists)
    git("commit", "--quiet", "--allow-empty", "-m", "two", cwd=project)
    (path / "ready").unlink()
    until(lambda: json.loads(moat("list", "--json").stdout)[0]["state"] not in {"running", "stopping"})
    assert victim.read_text() == "mine\n"
    assert len((logs / "HEAD").read_bytes()) > len(before)
    assert git("reflog", "show", "--format=%gs", "fix", cwd=project).splitlines()[0] == "moved"
    assert not (logs / "refs/heads/odd").exists()


@pytest.mark.docker
def test_a_name_that_docker_has_no_word_for(moat: Callable[..., object], tmp_path: Path) -> None:
    """Seen failing without `binds._check_name`: the engine then speaks of a path that does not exist."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff odd"))
    odd.mkdir()
    os.chown(odd, 4321, 4321)
    done = moat("run", "--runtime", "docker", "--", "true", cwd=odd)
    assert done.returncode == 3
    assert "\\xff odd: its name is not UTF-8" in done.stderr
    assert "--runtime embedded" in done.stderr


def test_git_that_waits_at_a_pipe_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`moat wt list` took five minutes, and said that there was no repository."""
    place = repository(tmp_path / "project")
    (place / ".git/HEAD").unlink()
    os.mkfifo(place / ".git/HEAD")
    monkeypatch.setattr(command, "_QUICK", 0.5)
    with pytest.raises(command.GitStuckError, match="did not end within") as caught:
        worktrees.source(place)
    assert caught.value.hint == f"a pipe may stand in the place of a file: find {place}/.git -type p"
