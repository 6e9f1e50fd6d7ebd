"""What a sandbox writes into a repository must not be run by git on the host: tried from inside."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.git.kit import RUNTIMES, git, repository, tries, until

# Each would make the user's next git command run the agent's program, outside of the fence.
ATTACKS = (
    "echo x > .git/hooks/pre-commit",
    "mkdir .git/hooks/sub",
    "mv .git/hooks .git/old",
    "rm -rf .git/hooks && mkdir .git/hooks && echo x > .git/hooks/pre-commit",
    "echo '[core]' >> .git/config",
    "printf x > .git/c && mv .git/c .git/config",
    "rm .git/config",
    "ln -sf /tmp/x .git/config",
    "mv .git .git2",
    "rm .git/commondir",
    "echo /tmp > .git/commondir",
)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_hooks_and_configuration_cannot_be_written(
    runtime: str, moat: Callable[..., object], tmp_path: Path
) -> None:
    """Seen failing with `fence._inside` returning no mounts: every attack then says `ok`."""
    place = repository(tmp_path / "project")
    config = (place / ".git/config").read_bytes()
    done = moat("run", "--runtime", runtime, "--", "sh", "-c", tries(*ATTACKS), cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"no {number}" for number in range(len(ATTACKS))]
    assert (place / ".git/config").read_bytes() == config
    assert not (place / ".git/hooks/pre-commit").exists()
    assert not (place / ".git/commondir").exists(), "the placeholder goes with the run"
    assert "warning" not in done.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_mount_of_the_repository_opens_nothing(
    runtime: str, moat: Callable[..., object], tmp_path: Path
) -> None:
    """agent.yaml of a cloned project can ask for it. Seen failing without `fence.shown_again`: all say `ok`."""
    place = repository(tmp_path / "project")
    (place / "agent.yaml").write_text("mounts: ['.:/again', '.git:/its', './.git/../:/third']\n")
    attacks = [f"cd {there} && {attack}" for there in ("/again", "/third") for attack in ATTACKS]
    attacks += [f"cd /its && {attack.replace('.git/', '')}" for attack in ATTACKS if ".git2" not in attack]
    config = (place / ".git/config").read_bytes()
    script = tries(*(f"( {attack} )" for attack in attacks))
    done = moat("run", "--runtime", runtime, "--", "sh", "-c", script, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"no {number}" for number in range(len(attacks))]
    assert (place / ".git/config").read_bytes() == config
    assert not (place / ".git/hooks/pre-commit").exists()


@pytest.mark.embedded
def test_a_mount_of_hooks_alone_is_refused(moat: Callable[..., object], tmp_path: Path) -> None:
    """Seen failing without `fence.shown_again`: the hook is there."""
    place = repository(tmp_path / "project")
    (place / ".git/hooks").mkdir(exist_ok=True)
    words = ("--runtime", "embedded", "--", "sh", "-c", "echo x > /h/pre-commit")
    (place / "agent.yaml").write_text("mounts: ['.git/hooks:/h']\n")
    done = moat("run", *words, cwd=place)
    assert "/.git/hooks may not be written by a run, and is to be mounted at /h for that" in done.stderr
    assert not (place / ".git/hooks/pre-commit").exists()
    (place / "agent.yaml").write_text("mounts: ['.git/hooks:/h:ro']\n")
    assert "Read-only" in moat("run", *words, cwd=place).stderr


@pytest.mark.embedded
def test_the_repository_of_a_worktree_in_a_mount_of_the_users(
    moat: Callable[..., object], tmp_path: Path
) -> None:
    """Seen failing without `fence.shown_again`."""
    place, tree = repository(tmp_path / "project"), tmp_path / "tree"
    git("worktree", "add", "-q", "-b", "side", str(tree), cwd=place)
    (place / ".git/hooks").mkdir(exist_ok=True)
    script = "cd /up; echo x > .git/hooks/pre-commit; echo x >> .git/config; echo two > file"
    words = ("--mount", f"{place}:/up", "--runtime", "embedded", "--", "sh", "-c", script)
    done = moat("run", *words, cwd=tree)
    assert done.stderr.count("Read-only file system") == 2, done.stderr
    assert (place / "file").read_text() == "two\n", "the rest of it is as the user asked for it"


@pytest.mark.embedded
def test_ordinary_work_goes_on(moat: Callable[..., object], tmp_path: Path) -> None:
    place = repository(tmp_path / "project")
    script = """set -e
git config --global user.name Agent; git config --global user.email agent@example.org
echo two >> file; git commit -qam two; git branch side; git switch -q side; echo three > new; git add new
git commit -qm three; git switch -q main; git merge -q side; git stash list; git tag v1; git gc -q; git status --short
git rebase -q HEAD~1; git log --format=%s"""
    done = moat("run", "--runtime", "embedded", "--", "sh", "-c", script, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["three", "two", "one"]
    assert git("log", "--format=%s", "v1", cwd=place).splitlines() == ["three", "two", "one"]
    assert git("fsck", cwd=place) is not None


@pytest.mark.embedded
def test_what_the_fence_cannot_keep_out_is_told(moat: Callable[..., object], tmp_path: Path) -> None:
    """A repository inside the workspace is ordinary work, and a trap: it is told now and before the next run.

    Seen failing with `GitGuard.aclose` not comparing.
    """
    place = repository(tmp_path / "project")
    script = "mkdir lib; cd lib; git init -q .; git config core.fsmonitor /tmp/evil"
    done = moat("run", "--name", "first", "--runtime", "embedded", "--", "sh", "-c", script, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "warning: first changed what git on this machine obeys" in done.stderr
    assert "made a git repository: lib/.git" in done.stderr
    again = moat("run", "--runtime", "embedded", "--", "true", cwd=place)
    assert "first changed what git on this machine obeys" in again.stderr
    audit = moat("audit", "first")
    assert "git.changed" in audit.stdout
    quiet = moat("run", "--runtime", "embedded", "--", "true", cwd=place)
    assert "warning" not in quiet.stderr, "a run that changed nothing has nothing to tell"


@pytest.mark.embedded
def test_an_ordinary_clone_is_not_worth_a_warning(moat: Callable[..., object], tmp_path: Path) -> None:
    place = repository(tmp_path / "project")
    script = "git clone -q . copy && git init -q new"
    done = moat("run", "--runtime", "embedded", "--", "sh", "-c", script, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    script = "git -C copy config remote.origin.url 'ext::sh evil' && printf '#!/bin/sh' > new/.git/hooks/post-merge"
    done = moat("run", "--runtime", "embedded", "--", "sh", "-c", script, cwd=place)
    assert "changed copy/.git/config" in done.stderr
    assert "made new/.git/hooks/post-merge" in done.stderr


@pytest.mark.embedded
def test_the_user_may_open_it(moat: Callable[..., object], tmp_path: Path) -> None:
    place = repository(tmp_path / "project")
    script = "git config alias.x '!true' && echo '#!/bin/sh' > .git/hooks/pre-push"
    done = moat("run", "--writable-git", "--runtime", "embedded", "--", "sh", "-c", script, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "changed .git/config" in done.stderr
    assert "made .git/hooks/pre-push" in done.stderr


@pytest.mark.embedded
def test_a_git_file_that_leads_elsewhere_opens_nothing(moat: Callable[..., object], tmp_path: Path) -> None:
    """A cloned project may bring a `.git` file: the repository that it names must not become visible."""
    other = repository(tmp_path / "private")
    git("worktree", "add", "--quiet", "-b", "b", str(tmp_path / "linked"), cwd=other)
    place = tmp_path / "project"
    place.mkdir()
    (place / ".git").write_text(f"gitdir: {other}/.git/worktrees/linked\n")
    done = moat("run", "--runtime", "embedded", "--", "ls", f"{other}/.git", cwd=place)
    assert done.returncode != 0
    assert "HEAD" not in done.stdout


LINKS = """cd .git
ln -sf {victim} COMMIT_EDITMSG; rm logs/HEAD; ln -s {victim} logs/HEAD; ln -s {victim}2 packed-refs
mkdir -p logs/refs/heads/hooks; ln -s {victim} logs/refs/heads/hooks/x
sleep 4; ls COMMIT_EDITMSG logs/HEAD packed-refs 2>&1 | wc -l; ln -s {victim} FETCH_HEAD; cd ../in
ln -sf {victim} .git/COMMIT_EDITMSG"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_git_here_does_not_write_through_a_link_of_the_sandbox(
    runtime: str, moat: Callable[..., object], tmp_path: Path
) -> None:
    """Git appends reflogs and writes messages through links, with text that the agent chooses: `~/.bashrc`.

    Seen failing with `obeyed.cut` removing nothing: the commit below is then in `victim`.
    """
    place = repository(tmp_path / "project")
    repository(place / "in")
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    script = LINKS.format(victim=victim)
    done = moat("run", "--runtime", runtime, "--", "sh", "-c", script, cwd=place)
    assert done.returncode == 0, done.stderr
    assert f"warning: made .git/logs/HEAD, a link to {victim}: removed" in done.stderr, "told at once"
    for name in ("FETCH_HEAD", "packed-refs", "logs/refs/heads/hooks/x"):
        assert f"made .git/{name}, a link to {victim}" in done.stderr
    assert f"made in/.git/COMMIT_EDITMSG, a link to {victim}: removed" in done.stderr
    git("commit", "--quiet", "--allow-empty", "-m", "two", cwd=place)
    git("pack-refs", "--all", cwd=place)
    git("fetch", "--quiet", ".", "main", cwd=place)
    git("commit", "--quiet", "--allow-empty", "-m", "two", cwd=place / "in")
    assert victim.read_text() == "mine\n"
    assert not Path(f"{victim}2").exists()


@pytest.mark.embedded
def test_a_link_in_place_of_the_hooks_is_refused(moat: Callable[..., object], tmp_path: Path) -> None:
    """A sandbox could replace the link. Seen failing without `fence._refuse_links`: the hook is then written."""
    place = repository(tmp_path / "project")
    (tmp_path / "shared").mkdir()
    (place / ".git/hooks").rename(tmp_path / "old")
    script = "rm .git/hooks && mkdir .git/hooks && echo x > .git/hooks/pre-commit"
    for target in (tmp_path / "shared", tmp_path / "nowhere"):
        (place / ".git/hooks").symlink_to(target)
        done = moat("run", "--runtime", "embedded", "--", "sh", "-c", script, cwd=place)
        assert done.returncode == 3
        assert ".git/hooks is a symbolic link, which a sandbox could replace" in done.stderr
        assert f"git config core.hooksPath {target} && rm {place}/.git/hooks" in done.stderr
        (place / ".git/hooks").unlink()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_restore_under_a_run_takes_no_mount_away(
    runtime: str, moat: Callable[..., object], tmp_path: Path
) -> None:
    """What Moat put there after the pre-run snapshot is a mount point; removing it would open the place.

    Seen failing without `restore._without_guarded`: `commondir` and `hooks` can then be made.
    """
    place = repository(tmp_path / "project")
    shutil.rmtree(place / ".git/hooks")
    attacks = ATTACKS[:2] + ATTACKS[-2:] + ("mkdir -p .git/hooks && touch .git/hooks/pre-commit",)
    script = f"touch ready; while [ -e ready ]; do sleep 0.1; done\n{tries(*attacks)}\ntouch done; sleep 60"
    moat("run", "-d", "--name", "at-work", "--runtime", runtime, "--", "sh", "-c", script, cwd=place)
    until((place / "ready").exists)
    done = moat("snapshot", "restore", "--yes", cwd=place)  # removes `ready` as well
    assert ".git/hooks (it is kept from a run that goes on" in done.stderr
    until((place / "done").exists)
    told = moat("logs", "at-work").stdout
    moat("stop", "at-work")
    assert told.split("\n")[:-1] == [f"no {number}" for number in range(len(attacks))]
    assert (place / ".git/hooks").exists()
    assert not (place / ".git/commondir").exists()


@pytest.mark.embedded
def test_who_commits_in_a_sandbox(moat: Callable[..., object], home: Path, tmp_path: Path) -> None:
    """As docs/troubleshooting.md says: nobody, or who is named in agent.yaml, or the user with `--mount`."""
    place = repository(tmp_path / "project")
    own = home / ".gitconfig"
    own.write_text("[user]\n\tname = The User\n\temail = user@example.org\n")
    run = ("run", "--runtime", "embedded")
    commit = ("--", "git", "commit", "--quiet", "--allow-empty", "-m", "more")
    assert "identity unknown" in moat(*run, *commit, cwd=place).stderr
    done = moat(*run, "--mount", f"{own}:/home/agent/.gitconfig:ro", *commit, cwd=place)
    assert (done.stderr, done.returncode) == ("", 0)
    names = {
        f"GIT_{who}_{what}": f"{what}@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    (place / "agent.yaml").write_text(
        "env:\n" + "".join(f"  {name}: {value}\n" for name, value in names.items())
    )
    done = moat(*run, *commit, cwd=place)
    assert (done.stderr, done.returncode) == ("", 0)
    assert git("log", "-2", "--format=%an %ae", cwd=place).split("\n")[:2] == [
        "NAME@example.org EMAIL@example.org",
        "The User user@example.org",
    ]
