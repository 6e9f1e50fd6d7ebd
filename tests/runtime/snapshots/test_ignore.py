"""What is left out, with real git as the oracle for the syntax."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from moat.runtime.snapshots import walk
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.ignore import Rules, parse
from tests.runtime.snapshots.kit import bring_back, entries, keep, store_for, write

WORDS = st.sampled_from(
    ["a", "b", "ab", "*", "a*", "*b", "?", "[ab]", "[!a]", "**", "\\a", "a\\*", "*.o", "x.o"]
)
LINES = st.builds(
    lambda negated, front, words, end: negated + front + "/".join(words) + end,
    st.sampled_from(["", "", "", "!"]), st.sampled_from(["", "", "/"]), st.lists(WORDS, min_size=1, max_size=3),
    st.sampled_from(["", "", "/"]),
)  # fmt: skip
FILES = ["a", "ab/a", "ab/b", "x.o", "a*", "b/x.o", "b/ab/a", "b/ab/b", "c/b/a/x.o", "c/a"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(top=st.lists(LINES, max_size=4), below=st.lists(LINES, max_size=2))
def test_gitignore_means_what_git_means(tmp_path_factory, top, below) -> None:
    store, workspace = store_for(tmp_path_factory.mktemp("git"))
    write(workspace, dict.fromkeys(FILES, ""))
    write(workspace, {".gitignore": "\n".join(top) + "\n", "b/.gitignore": "\n".join(below) + "\n"})
    environment = {"PATH": os.environ["PATH"], "HOME": str(workspace), "GIT_CONFIG_NOSYSTEM": "1"}
    git = ["git", "-C", workspace]
    subprocess.run([*git, "init", "-q"], check=True, env=environment)
    listed = subprocess.run(
        [*git, "ls-files", "-z", "--others", "--exclude-standard"],
        check=True,
        env=environment,
        capture_output=True,
    )
    theirs = set(os.fsdecode(listed.stdout).split("\0")) - {""}
    found = entries(store, keep(store, gitignored=False))
    ours = {path for path, entry in found.items() if entry.kind == "f" and not path.startswith(".git/")}
    assert ours == theirs


def test_by_default_everything_is_kept(tmp_path: Path) -> None:
    store, workspace = store_for(tmp_path)
    write(workspace, {".gitignore": "*\n", "node_modules/x": "x", ".env": "SECRET"})
    assert {"node_modules/x", ".env", ".gitignore"} <= set(entries(store, keep(store)))


def test_what_is_left_out_is_never_touched(tmp_path: Path) -> None:
    """Neither removed nor replaced, also when its directory has to go. The predecessor destroyed it."""
    store, workspace = store_for(tmp_path)
    write(workspace, {".gitignore": "*.log\nbuild/\n", "a": "1"})
    snapshot = keep(store, gitignored=False, exclude=("secret/",))
    write(
        workspace,
        {"a": "2", "x.log": "log", "build/out": "o", "secret/s": "s", "new/y.log": "l", "new/z": "z"},
    )
    done = bring_back(store, snapshot)
    files = {str(p.relative_to(workspace)) for p in workspace.rglob("*") if p.is_file()}
    assert files == {".gitignore", "a", "x.log", "build/out", "secret/s", "new/y.log"}
    assert (workspace / "a").read_text() == "1"
    assert [(item.path, item.why) for item in done.left] == [("new", "it holds what is not in the snapshots")]


def test_rules_that_changed_since_do_not_lose_anything(tmp_path: Path) -> None:
    """Kept then, left out now: the safety snapshot does not hold it, so it is left alone."""
    store, workspace = store_for(tmp_path)
    write(workspace, {"build/out": "1"})
    snapshot = keep(store, gitignored=False)
    write(workspace, {"build/out": "2", ".gitignore": "build/\n"})
    done = bring_back(store, snapshot)
    assert (workspace / "build/out").read_text() == "2"
    assert "build/out" in {item.path for item in done.left}


def test_the_configuration_comes_before_the_workspace(tmp_path: Path) -> None:
    """An agent that writes `!big/` into a .gitignore does not undo what the user left out."""
    store, workspace = store_for(tmp_path)
    write(workspace, {".gitignore": "!big/\n", "big/x": "x", "sub/.gitignore": "!big/", "sub/big/x": "x"})
    found = entries(store, keep(store, gitignored=False, exclude=("big/",)))
    assert not [path for path in found if "big" in path]


@pytest.mark.parametrize(
    "pattern", ["*a" * 30 + "b", "**/a/" * 200 + "b", "[" * 1000, "?" * 5000, "\\" * 999]
)
def test_a_clever_pattern_takes_no_time(pattern: str) -> None:
    """Seen failing with `[^/]*` in place of fnmatch's atomic groups."""
    began = time.monotonic()
    rule = parse(pattern)
    for _ in range(20):
        if rule is not None:
            rule.matches(["a"] * 150, directory=True)
            rule.matches(["a" * 255], directory=False)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("line", [" " * 262143 + "x", "[" * 262144])
def test_a_line_that_is_no_pattern_takes_no_time(line: str, tmp_path: Path) -> None:
    """Minutes before: the space at the end was looked for from each space, the end of a set from each `[`.

    The limit for all of them (`MAX_MATCHING`) is asked between two files.
    """
    store, workspace = store_for(tmp_path)
    write(workspace, {".gitignore": f"*.log\n{line}\n", "a": "1", "b.log": "1"})
    began = time.monotonic()
    assert keep(store, gitignored=False).files == 2
    assert time.monotonic() - began < 5


def test_an_escaped_space_at_the_end_belongs_to_the_name() -> None:
    rule = parse("a\\  \t")
    assert rule is not None
    assert rule.matches(["a "], directory=False)
    assert not rule.matches(["a"], directory=False)


def test_many_clever_patterns_do_not_keep_us_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any bound 40 such directories took more than two minutes; a run waits for its first snapshot."""
    store, workspace = store_for(tmp_path)
    before = keep(store)
    place = workspace
    for _ in range(40):
        lines = ["/".join(["**", "a"] * 15 + [f"x{number}*", "**"]) for number in range(2000)]
        (place / ".gitignore").write_text("\n".join(lines))
        place /= "a"
        place.mkdir()
    monkeypatch.setattr(walk, "MAX_MATCHING", 1.0)
    began = time.monotonic()
    with pytest.raises(SnapshotError, match="take too long to obey") as error:
        keep(store, gitignored=False)
    assert time.monotonic() - began < 20
    assert "ignore_gitignore" in (error.value.hint or "")
    assert store.all() == [before]
    assert keep(store).files == 40


def test_no_rules_cost_nothing() -> None:
    assert Rules.of((), gitignore=False).empty
