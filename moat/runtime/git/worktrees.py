"""Worktrees that runs work in: one for each branch, below `~/.moat/worktrees/<repository>/<branch>`.

Every git command names the repository by its own directory, never by a working tree: what an agent left in
a worktree (a `.git` that leads elsewhere, a nested repository) is not asked anything.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.paths import Home, private_dir
from moat.runtime.git import layout, obeyed, unseen
from moat.runtime.git.command import GitError, asks, git

_RUN_NAME = 63  # characters of a DNS label
_UNFINISHED = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_LOG", "rebase-merge", "rebase-apply")


@dataclass(frozen=True, slots=True)
class Source:
    """The repository that worktrees are made of."""

    common: Path  # its git directory
    directory: Path  # where the user is: HEAD is that of this working tree
    top: Path | None  # of the working tree there; None: bare

    @property
    def name(self) -> str:
        """Of its directory below the worktrees: readable, and no other repository's."""
        digest = hashlib.sha256(os.fsencode(self.common)).hexdigest()[:6]
        return f"{label(self.common)}-{digest}"


def label(common: Path) -> str:
    """A name for the repository, of letters, digits, `.`, `_` and `-`."""
    place = common.parent if common.name == layout.DOT_GIT else common
    return re.sub(r"[^A-Za-z0-9._-]+", "-", place.name.removesuffix(".git")).strip("-.") or "repository"


@dataclass(frozen=True, slots=True)
class Worktree:
    path: Path
    made_for: str  # the branch in its path
    own: Path  # its git directory
    common: Path  # of its repository
    branch: str | None  # checked out in it now; None: no branch


@dataclass(frozen=True, slots=True)
class Made:
    """What `ensure` did."""

    said: str
    begun_at: str | None  # the commit that the branch was made at; None: there was the branch


def source(directory: Path) -> Source:
    """The repository of `directory`. Raises UsageError outside of one."""
    found = asks("rev-parse", "--path-format=absolute", "--git-common-dir", cwd=directory)
    if found is None:
        git("version", cwd=directory)  # is it git that is missing?
        raise UsageError(
            f"{directory} is not in a git repository", hint="`git init` and a first commit make it one"
        )
    top = asks("rev-parse", "--show-toplevel", cwd=directory)
    return Source(
        common=Path(os.path.realpath(found.removesuffix("\n"))),
        directory=directory,
        top=Path(top.removesuffix("\n")) if top else None,
    )


def ensure(home: Home, of: Source, branch: str) -> tuple[Worktree, Made | None]:
    """The worktree of `branch`, and what was done for it (None: it was there).

    A missing branch is made: from the only remote branch of that name, else from HEAD. Raises UsageError
    or GitError where git cannot have it.
    """
    if asks("check-ref-format", "--branch", branch, cwd=of.directory) != f"{branch}\n":
        raise UsageError(f"{branch!r} is not a branch name", hint="e.g. `moat wt fix-login`")
    path = Path(os.path.realpath(home.worktrees)) / of.name / branch
    made = None
    if not os.path.lexists(path / layout.DOT_GIT):
        unseen.check(home, of.common)
        _make_room(of, path)
        words, origin = _words(of, branch, path)
        try:
            git("worktree", "add", "--quiet", *words, cwd=of.directory)
        except GitError as error:
            raise _explained(error, branch) from None
        begun_at = _tip(of.common, branch) if "-b" in words else None
        made = Made(f"made the worktree {path} ({origin})", begun_at)
    found = at(path, branch)
    if found is None or found.common != of.common:
        raise UsageError(
            f"{path} is not a worktree of {of.common}",
            hint=f"`git worktree repair {quote(str(path))}`, or remove it",
        )
    return found, made


def _tip(common: Path, branch: str) -> str | None:
    return asks(
        "--git-dir", str(common), "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", cwd=common
    )


def undo(home: Home, tree: Worktree, made: Made) -> None:
    """Take back what `ensure` did, unless somebody has worked in it since. Raises GitError then."""
    remove(home, tree)
    if made.begun_at and _tip(tree.common, tree.made_for) == made.begun_at:
        git("--git-dir", str(tree.common), "branch", "--quiet", "-D", tree.made_for, cwd=tree.common)


def _make_room(of: Source, path: Path) -> None:
    base = next(parent for parent in path.parents if parent.name == of.name)
    for parent in path.parents[: len(path.relative_to(base).parts) - 1]:
        if os.path.lexists(parent / layout.DOT_GIT):
            raise UsageError(f"{path} would lie in the worktree {parent}", hint="moat wt clean")
    private_dir(base)
    path.parent.mkdir(parents=True, exist_ok=True)
    on_record = git("worktree", "list", "--porcelain", "-z", cwd=of.directory).split("\0")
    if f"worktree {path}" in on_record and not os.path.lexists(path):
        # Its directory was deleted by hand; git keeps the branch for it until it is told.
        git("worktree", "remove", "--force", str(path), cwd=of.directory)


def _words(of: Source, branch: str, path: Path) -> tuple[list[str], str]:
    """Arguments of `git worktree add`, and in words where the branch comes from."""
    if asks("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", cwd=of.directory):
        return [str(path), branch], f"branch {branch}"
    names = git("for-each-ref", "--format=%(refname:short)", f"refs/remotes/*/{branch}", cwd=of.directory)
    if len(names.split()) == 1:
        return [
            "--track",
            "-b",
            branch,
            str(path),
            names.strip(),
        ], f"new branch {branch}, from {names.strip()}"
    if not asks("rev-parse", "--verify", "--quiet", "HEAD^{commit}", cwd=of.directory):
        raise UsageError(
            "the repository has no commit that a branch could begin at", hint="commit something first"
        )
    return ["-b", branch, str(path), "HEAD"], f"new branch {branch}, from HEAD"


def _explained(error: GitError, branch: str) -> GitError:
    elsewhere = re.search(r"already (?:checked out|used by worktree) at '(.*)'", str(error))
    if elsewhere:
        return GitError(
            f"branch {branch} is checked out in {elsewhere[1]}",
            hint=f"work there (`moat claude {quote(elsewhere[1])}`), or choose another branch",
        )
    return GitError(f"git cannot make a worktree of {branch}: {error}")


# --- the ones there are ---------------------------------------------------------------------------


def at(path: Path, made_for: str) -> Worktree | None:
    """The worktree at `path`; None when nothing there is one."""
    found = layout.find(path)
    if found is None or not found.linked:
        return None
    head = layout.content(found.own / "HEAD")
    if head is None:
        return None
    prefix = "ref: refs/heads/"
    branch = head.removeprefix(prefix) if head.startswith(prefix) else None
    return Worktree(found.tree, made_for, found.own, found.common, branch)


def all_of(home: Home, of: Source | None) -> list[tuple[Path, Worktree | None]]:
    """Every directory that is, or was meant to be, a worktree, of one repository or of all."""
    base = Path(os.path.realpath(home.worktrees))
    repositories = [base / of.name] if of else sorted(_directories(base))
    return [
        (path, at(path, str(path.relative_to(place))))
        for place in repositories
        for path in sorted(_leaves(place))
    ]


def _leaves(place: Path) -> Iterator[Path]:
    for path in _directories(place):
        if os.path.lexists(path / layout.DOT_GIT):
            yield path
        else:
            yield from _leaves(path)


def _directories(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def work_in(tree: Worktree) -> list[str]:
    """What would be lost, or hard to find again, without `tree`: why it must be kept, for a person."""
    reasons = []
    changed = _ask(tree, "status", "--porcelain", "-z", "--no-renames", "--ignore-submodules=all")
    if changes := len(changed.split("\0")) - 1:
        reasons.append(f"{changes} uncommitted change{'s' * (changes > 1)}")
    own = ["--exclude", tree.branch] if tree.branch else []
    words = ["HEAD", "--not", *own, "--branches", "--remotes", "--tags"]
    if commits := int(_ask(tree, "rev-list", "--count", *words)):
        place = f"only on {tree.branch}, not pushed" if tree.branch else "on no branch"
        reasons.append(f"{commits} commit{'s' * (commits > 1)} {place}")
    if any(os.path.lexists(tree.own / name) for name in _UNFINISHED):
        reasons.append("an unfinished merge, rebase or bisect")
    unseen: list[str] = []
    entries = obeyed.git_entries(tree.path, lambda: unseen.append("too many files to look through"))
    inner = [entry for entry in entries if entry != tree.path / layout.DOT_GIT]
    reasons += unseen
    if inner:
        reasons.append(f"a repository or submodule in it: {inner[0].relative_to(tree.path)}")
    if (tree.own / "locked").exists():
        reasons.append("locked (`git worktree lock`)")
    return reasons


def _ask(tree: Worktree, *words: str) -> str:
    return git("--git-dir", str(tree.own), "--work-tree", str(tree.path), *words, cwd=tree.common)


def remove(home: Home, tree: Worktree) -> None:
    """Remove the directory and git's record of it; the branch stays. Raises GitError when git sees work."""
    git("--git-dir", str(tree.common), "worktree", "remove", str(tree.path), cwd=tree.common)
    base = Path(os.path.realpath(home.worktrees))
    for parent in tree.path.parents:
        if parent == base or not parent.is_relative_to(base) or any(parent.iterdir()):
            return
        parent.rmdir()


def run_name(project: str, branch: str) -> str:
    """`<project>-<branch>` as a DNS label."""
    text = re.sub(r"[^a-z0-9]+", "-", f"{project}-{branch}".lower()).strip("-")
    return text[:_RUN_NAME].strip("-") or "worktree"
