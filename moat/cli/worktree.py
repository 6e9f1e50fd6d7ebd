"""`--worktree BRANCH`: the worktree that a run works in instead of the directory where the user is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from moat import config, surroundings
from moat.cli.output import say
from moat.config import RunConfig
from moat.errors import NotAllowedError, StartError
from moat.paths import Home
from moat.runtime import known
from moat.runtime.git import worktrees
from moat.runtime.git.command import GitError
from moat.runtime.git.worktrees import Worktree
from moat.runtime.records import RunRecord


@contextlib.contextmanager
def entered(branch: str, home: Home, directory: Path) -> Iterator[Path]:
    """The workspace of `branch`, made when it is missing. Raises StartError while a run works in it.

    What was made goes again when the user is asked meanwhile, and allows nothing.
    """
    surroundings.leave(directory, *known.workspaces(home))
    tree, made = worktrees.ensure(home, worktrees.source(directory), branch)
    if made:
        say(made.said)
    _check(branch, tree, home)
    try:
        yield tree.path
    except (NotAllowedError, KeyboardInterrupt):
        if made:
            _undo(home, tree, made)
        raise


def _check(branch: str, tree: Worktree, home: Home) -> None:
    if tree.branch != branch:
        say(f"warning: the worktree of {branch} has {tree.branch or 'no branch'} checked out now")
    busy = active(tree.path, known.all_runs(home))
    if busy:
        raise StartError(
            f"run {busy.name} ({busy.id}) is active in the worktree of {branch}",
            hint=f"moat attach {busy.id}\nmoat stop {busy.id}",
        )


def _undo(home: Home, tree: Worktree, made: worktrees.Made) -> None:
    try:
        worktrees.undo(home, tree, made)
    except GitError as error:
        say(f"warning: the worktree {tree.path} stays: {error}")
    else:
        say(f"removed the worktree {tree.path}{' and its branch' if made.begun_at else ''} again")


def active(path: Path, runs: list[RunRecord]) -> RunRecord | None:
    return next((run for run in runs if run.workspace == str(path) and not run.state.ended), None)


def worktree_at(workspace: Path) -> Worktree | None:
    """The worktree that `workspace` is, when it is one of Moat's."""
    base = Path(os.path.realpath(Home.from_environment().worktrees))
    place = Path(os.path.realpath(workspace))
    below = place.relative_to(base).parts if place.is_relative_to(base) else ()
    return worktrees.at(place, "/".join(below[1:])) if len(below) >= 2 else None


def project_of(workspace: Path) -> Path:
    """The real path of the workspace, or of the working tree that it is a worktree of."""
    tree = worktree_at(workspace)
    if tree is None:
        return Path(os.path.realpath(workspace))
    return Path(os.path.realpath(tree.common.parent if tree.common.name == ".git" else tree.common))


def branch_of(workspace: Path) -> str | None:
    tree = worktree_at(workspace)
    return tree.made_for if tree else None


def name_of(workspace: Path, settings: RunConfig) -> str | None:
    """The name of a run that was given none."""
    tree = worktree_at(workspace)
    if tree is None:
        return settings.name
    return worktrees.run_name(settings.name or worktrees.label(tree.common), tree.made_for)


def configuration(workspace: Path) -> RunConfig:
    """agent.yaml of the workspace; a worktree without one has that of the main working tree."""
    settings = config.load(workspace)
    tree = worktree_at(workspace) if settings.path is None else None
    if tree is None or tree.common.name != ".git":
        return settings
    return config.load(tree.common.parent)
