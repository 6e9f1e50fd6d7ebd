"""`moat wt BRANCH`, `moat wt list`, `moat wt clean`: runs in worktrees, one for each branch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from moat import surroundings
from moat.cli import claude, run
from moat.cli.output import emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.cli.worktree import active, configuration, entered
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import known
from moat.runtime.git import unseen, worktrees
from moat.runtime.git.command import GitError
from moat.runtime.git.worktrees import Worktree
from moat.runtime.records import RunRecord

_USAGE = (
    "moat wt BRANCH [dir] [options] [-- command [argument...]]\n"
    "       moat wt list [--all] [--json]\n"
    "       moat wt clean [--all] [--dry-run] [--json]"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One directory below the worktrees."""

    path: Path
    tree: Worktree | None  # None: it is no worktree (any more)
    run: RunRecord | None  # that works there now

    @property
    def branch(self) -> str:
        return self.tree.made_for if self.tree else ""


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["list"]:
        return _list(argv[1:])
    if argv[:1] == ["clean"]:
        return _clean(argv[1:])
    parser = Parser(
        prog="moat wt",
        usage=_USAGE,
        description="Work in a worktree of BRANCH, which is made when it is missing. With a command, here "
        "or in agent.yaml, as `moat run`; without one as `moat claude`. It takes their options.",
    )
    parser.add_argument("branch", metavar="BRANCH", help="a branch; a new one begins at HEAD")
    branch = parser.parse_args(argv[:1]).branch
    words = [*argv[1:], "--worktree", branch]
    if "--" in argv:
        at = argv.index("--")
        return run.main([*argv[1:at], "--worktree", branch, *argv[at:]])
    options = claude.parse(words)
    if options.prompt is not None or options.proceed or options.resume:
        return claude.main(words)
    # Only the worktree's own agent.yaml says what is to run there.
    asked = contextlib.ExitStack()
    workspace = asked.enter_context(entered(branch, Home.from_environment(), Path(options.dir or ".")))
    main_of = run.main if configuration(workspace).command else claude.main
    return main_of(words, asked=asked)


def _rows(home: Home, *, everywhere: bool) -> list[Row]:
    """Of the repository here; of all with `everywhere`, and outside of any."""
    of = None
    if not everywhere:
        surroundings.leave(Path.cwd(), *known.workspaces(home))
        try:
            of = worktrees.source(Path.cwd())
        except UsageError:
            of = None
    runs = known.all_runs(home)
    return [Row(path, tree, active(path, runs)) for path, tree in worktrees.all_of(home, of)]


def _list(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat wt list", description="The worktrees of the repository here, or all.")
    parser.add_argument("--all", action="store_true", help="of every repository")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    rows = _rows(Home.from_environment(), everywhere=options.all)
    if options.json:
        emit_json([_as_json(row) for row in rows])
        return 0
    shown = [(row.branch or "?", row.run.name if row.run else "", _state(row), str(row.path)) for row in rows]
    emit(table(("BRANCH", "RUN", "STATE", "PATH"), shown))
    return 0


def _state(row: Row) -> str:
    if row.tree is None:
        return "no worktree"
    if row.tree.branch == row.tree.made_for:
        return "ok"
    return f"{row.tree.branch or 'no branch'} checked out"


def _as_json(row: Row) -> dict[str, object]:
    return {
        "branch": row.branch or None,
        "checked_out": row.tree.branch if row.tree else None,
        "path": str(row.path),
        "repository": str(row.tree.common) if row.tree else None,
        "run": row.run.id if row.run else None,
    }


def _clean(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat wt clean",
        description="Remove worktrees that hold nothing of their own. Branches stay, and so does every "
        "worktree with uncommitted changes, commits that are nowhere else, or an active run.",
    )
    parser.add_argument("--all", action="store_true", help="of every repository")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    done = []
    for row in _rows(home, everywhere=options.all):
        reasons = _kept_because(row, home)
        if not reasons and not options.dry_run and row.tree:
            try:
                worktrees.remove(home, row.tree)
            except GitError as error:
                reasons = [str(error)]
        done.append((row, reasons))
    if options.json:
        emit_json([_as_json(row) | {"removed": not reasons, "kept": reasons} for row, reasons in done])
        return 0
    _tell(done, "would remove" if options.dry_run else "removed")
    return 0


def _kept_because(row: Row, home: Home) -> list[str]:
    """Why it must stay; empty when it may go."""
    if row.tree is None:
        return ["it is no worktree that git knows; look at it yourself"]
    if row.run is not None:
        return [f"run {row.run.name} is active there"]
    try:
        unseen.check(home, row.tree.common)
        return worktrees.work_in(row.tree)
    except UsageError as error:
        return [str(error)]
    except GitError as error:
        return [f"git cannot say what is in it: {error}"]


def _tell(done: Sequence[tuple[Row, list[str]]], verb: str) -> None:
    if not done:
        say("no worktrees")
    for row, reasons in done:
        if reasons:
            say(f"kept {row.path}: {', '.join(reasons)}")
        else:
            emit(f"{verb} {row.path}")
