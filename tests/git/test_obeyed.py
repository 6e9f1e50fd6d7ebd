"""Looking for what git would obey, in a workspace that was made to hold the one who looks up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.runtime.git import inner, layout, obeyed
from moat.runtime.git.command import configured
from tests.git.kit import git, repository


def hostile(place: Path) -> None:
    """Pipes where files are expected, a giant, links to what is not the workspace's."""
    for name in ("config", "commondir", "gitdir", "hooks/pre-commit"):
        inner = repository(place / f"pipe-{name.replace('/', '-')}")
        path = inner / ".git" / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    giant = repository(place / "giant") / ".git/config"
    os.truncate(giant, 1 << 40)
    linked = repository(place / "linked") / ".git/config"
    linked.unlink()
    linked.symlink_to("/dev/zero")


def test_nothing_that_was_made_to_hold_us_up_does(tmp_path: Path) -> None:
    """Seen failing without the look at the kind of file in `command.configured`: git waits for the pipe."""
    hostile(tmp_path)
    began = time.monotonic()
    found = obeyed.look(tmp_path)
    assert time.monotonic() - began < 10
    told = obeyed.compare({}, found)
    assert "made a git repository: pipe-config/.git" in told
    assert "made a git repository: linked/.git" in told
    assert "made a git repository: giant/.git" in told


@pytest.mark.parametrize("name", ["gitdir", "commondir"])
def test_a_pointer_that_is_a_pipe_leads_nowhere(tmp_path: Path, name: str) -> None:
    """A run could leave this for the next one, which then would never start."""
    own = tmp_path / "evil/worktrees/x"
    own.mkdir(parents=True)
    (own / "gitdir").write_text(f"{tmp_path}/.git\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / ".git").write_text(f"gitdir: {own}\n")
    assert layout.find(tmp_path) is not None
    (own / name).unlink()
    os.mkfifo(own / name)
    assert layout.find(tmp_path) is None


def test_a_pipe_that_takes_the_place_of_a_file_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the file and its opening.

    Seen failing, by waiting for ever, with `path.open("rb")` in `_digest`.
    """
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    config = tmp_path / ".git" / "config"
    plain = os.lstat(config)
    config.unlink()
    os.mkfifo(config)
    monkeypatch.setattr(obeyed.os, "lstat", lambda *_, **__: plain)
    rescue = threading.Timer(3, lambda: os.close(os.open(config, os.O_WRONLY)))
    rescue.start()
    began = time.monotonic()
    assert obeyed._digest(config)
    rescue.cancel()
    assert time.monotonic() - began < 3


def test_a_giant_index_is_counted_in_pieces(tmp_path: Path) -> None:
    """Seen failing with the whole of it read: 200 MB of a sandbox's in the supervisor, each second."""
    index = tmp_path / "index"
    with index.open("wb") as file:
        for at in (0, inner._PIECE - 2, 3 * inner._PIECE):
            file.seek(at)
            file.write(inner._GITLINK)
        file.truncate(200 << 20)
    tracemalloc.start()
    try:
        assert inner._gitlinks(index) == 3
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_too_many_files_to_look_through_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run hides a repository behind empty files."""
    monkeypatch.setattr(obeyed, "MAX_ENTRIES", 50)
    before = obeyed.look(tmp_path)
    for number in range(60):
        (tmp_path / f"file-{number}").touch()
    assert obeyed.compare(before, obeyed.look(tmp_path)) == (obeyed.TOO_MANY,)


def test_the_tail_of_a_giant_hook_counts(tmp_path: Path) -> None:
    hook = repository(tmp_path / "x") / ".git/hooks/pre-commit"
    hook.write_bytes(b"#" * (2 << 20))
    before = obeyed.look(tmp_path)
    with hook.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    assert obeyed.compare(before, obeyed.look(tmp_path)) == ("changed x/.git/hooks/pre-commit",)


def test_files_of_the_workspace_that_its_configuration_names(tmp_path: Path) -> None:
    place = repository(tmp_path / "x")
    (place / ".husky").mkdir()
    git("config", "core.hooksPath", ".husky", cwd=place)
    git("config", "include.path", "../team.gitconfig", cwd=place)
    before = obeyed.look(place)
    (place / ".husky/pre-commit").write_text("#!/bin/sh\n")
    (place / "team.gitconfig").write_text("[alias]\n")
    assert set(obeyed.compare(before, obeyed.look(place))) == {
        "made .husky/pre-commit",
        "made team.gitconfig",
    }


def test_what_the_configuration_names_inside_of_the_git_directory(tmp_path: Path) -> None:
    """No mount is on it, so that a run can write it. Seen failing while `.git` was left out there."""
    place = repository(tmp_path / "x")
    git("config", "core.hooksPath", ".git/own-hooks", cwd=place)
    git("config", "include.path", "extra", cwd=place)
    (place / ".git/own-hooks").mkdir()
    (place / ".git/extra").write_text("[user]\n")
    before = obeyed.look(place)
    (place / ".git/own-hooks/pre-commit").write_text("#!/bin/sh\n")
    (place / ".git/extra").write_text("[core]\n\tfsmonitor = ./x\n")
    assert obeyed.compare(before, obeyed.look(place)) == (
        "made .git/own-hooks/pre-commit",
        "changed .git/extra",
    )


def test_what_is_named_by_what_the_configuration_includes(tmp_path: Path) -> None:
    """Seen failing while only the repository's own file was asked what it names."""
    place = repository(tmp_path / "x")
    git("config", "include.path", "../team.gitconfig", cwd=place)
    (place / "team.gitconfig").write_text(
        "[core]\n\thooksPath = .githooks\n[include]\n\tpath = more.gitconfig\n\tpath = team.gitconfig\n"
    )
    (place / ".githooks").mkdir()
    before = obeyed.look(place)
    (place / ".githooks/post-checkout").write_text("#!/bin/sh\n")
    (place / "more.gitconfig").write_text("[core]\n\tfsmonitor = ./x\n")
    assert set(obeyed.compare(before, obeyed.look(place))) == {
        "made .githooks/post-checkout",
        "made more.gitconfig",
    }


def test_includes_without_end_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of git for each would hold up every look. Seen failing without `_MOST_INCLUDED`: git was asked 101 times."""
    place = repository(tmp_path / "x")
    git("config", "include.path", "../0.inc", cwd=place)
    for number in range(100):
        lines = (f"\tpath = {(number + step) % 100}.inc\n" for step in range(1, 50))
        (place / f"{number}.inc").write_text("[include]\n" + "".join(lines))
    asked: list[Path] = []

    def counted(file: Path, *words: str) -> str | None:
        asked.append(file)
        return configured(file, *words)

    monkeypatch.setattr(obeyed, "configured", counted)
    obeyed.look(place)
    included = [file for file in asked if file.suffix == ".inc"]
    assert 10 < len(included) < 32, "the repository's own file is one of them"


def told_at_once(moat_bin: str, name: str, place: Path, script: str, line: str) -> str:
    """Run `script`, and go on only when `line` was told; returns what is told after that.

    Seen failing with `Inner.changed` returning False: nothing is told until the run has been ended.
    """
    whole = f"{script}\nwhile [ ! -e go ]; do sleep 0.05; done"
    words = [moat_bin, "run", "--name", name, "--runtime", "embedded", "--", "sh", "-c", whole]
    with subprocess.Popen(
        words,
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        ended = threading.Timer(30, (place / "go").touch)
        ended.start()
        while (told := process.stderr.readline().rstrip("\n")) != line:
            assert told, "it ended without a word"
        assert not (place / "go").exists(), "it was told at the end only"
        ended.cancel()
        (place / "go").touch()
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0, rest
    (place / "go").unlink()
    return rest


@pytest.mark.embedded
def test_an_added_repository_is_the_trap_that_is_told(
    moat: Callable[..., object], moat_bin: str, tmp_path: Path
) -> None:
    """What docs/security.md says is not stopped, done for real: `git status` above it runs its program."""
    place = repository(tmp_path / "project")
    proof = tmp_path / "ran-outside"
    script = f"""mkdir lib; cd lib; git init -q .; git config user.name a; git config user.email a@example.org
git commit -q --allow-empty -m x; git config core.fsmonitor "touch {proof}; false"; cd ..; git add lib 2>/dev/null"""
    rest = told_at_once(moat_bin, "trap", place, script, "moat: warning: made a git repository: lib/.git")
    assert not proof.exists(), "neither the sandbox nor Moat's own look runs it"
    assert "made a git repository: lib/.git" in rest, "and again at the end"
    again = moat("run", "--runtime", "embedded", "--", "true", cwd=place)
    assert "trap changed what git on this machine obeys" in again.stderr
    assert not proof.exists()
    git("status", cwd=place)
    assert proof.exists(), "if git no longer does this, the documents can be friendlier"


@pytest.mark.embedded
def test_a_configuration_that_the_host_replaced_is_told(moat: Callable[..., object], tmp_path: Path) -> None:
    """A mount on a single file ends when the host replaces it; what the run then writes is told."""
    place = repository(tmp_path / "project")
    script = "touch ready; while [ ! -e go ]; do sleep 0.05; done; printf '[alias]\\n\\tx = !true\\n' >> .git/config"
    started = moat(
        "run", "-d", "--name", "late", "--runtime", "embedded", "--", "sh", "-c", script, cwd=place
    )
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 20
    while not (place / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    git("config", "user.name", "Host", cwd=place)
    told = "was replaced on this machine, so that this run can write it"
    while told not in moat("audit", "late").stdout:
        assert time.monotonic() < deadline, "within a second, as it says"
    (place / "go").touch()
    while '"stopped"' not in moat("list", "--json").stdout:
        assert time.monotonic() < deadline, moat("list", "--json").stdout
        time.sleep(0.1)
    assert "alias.x" in git("config", "--list", cwd=place)
    next_one = moat("run", "--runtime", "embedded", "--", "true", cwd=place)
    assert "changed .git/config" in next_one.stderr


@pytest.mark.embedded
def test_what_a_run_does_to_a_submodule_is_told(moat_bin: str, tmp_path: Path) -> None:
    """It is not prevented: docs/security.md says so. Nothing of it runs on this machine before it is told."""
    place, library = repository(tmp_path / "project"), repository(tmp_path / "library")
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib", cwd=place)
    git("commit", "--quiet", "-m", "submodule", cwd=place)
    proof = tmp_path / "ran-outside"
    script = f"git -C lib config core.fsmonitor 'touch {proof}; false'; printf '#!/bin/sh' > .git/modules/lib/hooks/post-merge"
    rest = told_at_once(moat_bin, "inner", place, script, "moat: warning: changed .git/modules/lib/config")
    assert "changed .git/modules/lib/config" in rest
    assert "made .git/modules/lib/hooks/post-merge" in rest
    assert not proof.exists()
    git("status", "--ignore-submodules=all", cwd=place)
    assert not proof.exists(), "this way of looking is the advice"
    git("status", cwd=place)
    assert proof.exists(), "if git no longer does this, the documents can be friendlier"


def test_names_cannot_draw_on_a_terminal(tmp_path: Path) -> None:
    """What is told at the end of a run names what the agent made. Seen failing with `shown` escaping nothing."""
    repository(tmp_path / "\x1b]0;evil\x07\n")
    (tmp_path / "\x1b]0;evil\x07\n/.git/config").write_text("[alias]\nx = !true\n")
    (tmp_path / "\x1b]0;evil\x07\n/.git/x").symlink_to("\x1b[2J")
    told = [*obeyed.compare({}, obeyed.look(tmp_path)), *obeyed.cut(tmp_path, {})]
    assert len(told) == 3
    assert all(line.isprintable() for line in told)


def test_the_commands_of_an_unfinished_rebase_are_told(tmp_path: Path) -> None:
    """`git rebase --continue` runs what follows `exec`, however far down it is."""
    place = repository(tmp_path / "p")
    todo = place / ".git/rebase-merge/git-rebase-todo"
    todo.parent.mkdir()
    for text, told in (("pick 1 one\n", ()), ("x touch y\n", 1), ("#\n" * 9000 + "x touch y\n", 1)):
        todo.write_text(text)
        found = obeyed.compare({}, obeyed.look(place))
        assert ("made .git/rebase-merge/git-rebase-todo" in found) == bool(told)


def test_empty_lines_of_an_unfinished_rebase_hold_nobody_up(tmp_path: Path) -> None:
    """The command was looked for from each of them to the last one: a quarter of a second for each repository."""
    for number in range(100):
        todo = tmp_path / f"{number}/.git/rebase-merge/git-rebase-todo"
        todo.parent.mkdir(parents=True)
        todo.write_text("\n" * 7990 + (" \tx touch y" if number == 7 else "#"))
    began = time.monotonic()
    found = obeyed.look(tmp_path)
    assert time.monotonic() - began < 5
    told = [path for path in found if path.endswith("git-rebase-todo")]
    assert told == ["7/.git/rebase-merge/git-rebase-todo"]


def begun(place: Path, what: str) -> None:
    """`what` has stopped at a conflict that is resolved, with one commit to go."""
    repository(place)
    git("switch", "-qc", "side", cwd=place)
    for name in ("file", "more"):
        (place / name).write_text("two")
        git("add", name, cwd=place)
        git("commit", "-qm", name, cwd=place)
    git("switch", "-q", "main", cwd=place)
    (place / "file").write_text("three")
    git("commit", "-qam", "three", cwd=place)
    words = ["rebase", "main", "side"] if what == "rebase" else ["cherry-pick", "side~1", "side"]
    with pytest.raises(AssertionError, match="conflict"):
        git(*words, cwd=place)
    (place / "file").write_text("both")
    git("add", "file", cwd=place)


@pytest.mark.parametrize(
    ("what", "file", "text"),
    [
        ("rebase", "rebase-merge/strategy", "x/y\n"),
        ("cherry-pick", "sequencer/opts", "[options]\n\tstrategy = x/y\n"),
    ],
)
def test_a_merge_strategy_that_is_a_program_of_the_workspace_is_told(
    tmp_path: Path, what: str, file: str, text: str
) -> None:
    """Seen failing before `_UNFINISHED` had more than the list of commands: git ran it, and nothing was said."""
    place = tmp_path / "p"
    begun(place, what)
    before = obeyed.look(place)
    assert not any("rebase-merge" in name or "sequencer" in name for name in before), "an honest one"
    (place / ".git" / file).write_text(text)
    program = place / "git-merge-x/y"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    assert f"made .git/{file}" in obeyed.compare(before, obeyed.look(place))
    with contextlib.suppress(AssertionError):
        git("-c", "core.editor=true", what, "--continue", cwd=place)
    assert (tmp_path / "ran").exists(), "or git does not obey this any more, and nothing need be told"
