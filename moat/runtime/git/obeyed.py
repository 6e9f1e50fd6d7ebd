"""What git on the host would obey in a workspace, and what of it a run has changed.

The fence cannot keep a sandbox from making another repository in the workspace (`git clone` is ordinary
work), and a `git status` of the user in that directory obeys its configuration. So it is looked at before
and after: every `config`, hook, pointer and symbolic link of every git directory below the workspace, the
commands of an unfinished rebase, and what the workspace's own configuration names there (`core.hooksPath`,
`include.path`). Nothing is executed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from moat.regex import regex
from moat.runtime.git import links
from moat.runtime.git.command import configured
from moat.runtime.git.layout import DOT_GIT, Repository, content, find

State = Mapping[str, str]  # path, relative to the workspace where it lies in it -> digest

MAX_ENTRIES = 400_000  # of the workspace; a second or two
TOO_MANY = f"made more than {MAX_ENTRIES:,} files: not all of them were looked through for repositories"
_FILES = ("config", "config.worktree", "commondir", "gitdir")
_LARGEST = 1 << 20  # bytes of one file that are read
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_UNREAD = "unread"
_PLAIN = (
    "plain "  # before the digest of a configuration that runs nothing: what `git init` and `git clone` write
)
_HARMLESS = regex(
    r"core\.(repositoryformatversion|filemode|bare|logallrefupdates|ignorecase|precomposeunicode|symlinks)"
    r"|remote\..+\.(url|fetch)|branch\..+\.(remote|merge)|user\.(name|email)"
)
# What has begun, and what in it makes `git rebase --continue` or `git cherry-pick --continue` run something:
# a strategy `a/b` is the program `git-merge-a/b` of the working tree.
_UNFINISHED = {
    "rebase-merge/git-rebase-todo": regex(r"^[^\S\n]*(?:x|exec)\s", re.MULTILINE),
    "rebase-merge/strategy": regex(r"/"),
    "sequencer/opts": regex(r"/"),
}
_UNFINISHED_SIZE = 8000  # bytes; what is longer is not read to its end
_MOST_INCLUDED = 32  # files of configuration; git is asked about each
_SHOWN = 8


def look(workspace: Path, *, common: bool = True) -> State:
    """Everything that is obeyed at this moment. Blocks: a walk over the workspace.

    `common`: of a worktree the repository's own configuration as well, for a run that could write it.
    """
    found: dict[str, str] = {}
    for entry in git_entries(workspace, lambda: found.update({TOO_MANY: ""})):
        _one(entry, workspace, found)
    repository = find(workspace)
    if repository is not None:
        if repository.linked:
            _directory(repository.own, workspace, found)
            if common:
                _entries(repository.common, workspace, found)
            _links(repository.common, workspace, found)
        _named(repository.common / "config", repository.tree, workspace, found)
    return found


def cut(workspace: Path, before: State, repository: Repository | None = None) -> tuple[str, ...]:
    """Remove the links that were made in git directories since `before`; one line each for a person.

    repository: look at the directories of this one only, and not through the workspace.
    """
    places = {entry for entry in (() if repository else git_entries(workspace)) if not entry.is_symlink()}
    repository = repository or find(workspace)
    if repository is not None:
        places |= {repository.own, repository.common}
    made: dict[Path, str] = {}
    for place in sorted(places):
        made |= links.cut(place, lambda path, to: before.get(_name(path, workspace)) == _link(to))
    return tuple(
        f"made {_name(path, workspace)}, a link to {shown(target)}: removed, git would have written there"
        for path, target in sorted(made.items())
    )


def _links(place: Path, workspace: Path, found: dict[str, str]) -> None:
    for path, target in links.found(place).items():
        found[_name(path, workspace)] = _link(target)


def _link(target: str) -> str:
    return f"link {shown(target)}"


def compare(before: State, after: State) -> tuple[str, ...]:
    """What changed, one line each for a person: `made .git/hooks/pre-commit`."""
    made = [
        path
        for path in after
        if path not in before and path != TOO_MANY and not after[path].startswith(_PLAIN)
    ]
    repositories = {_of(path) for path in made if _of(path) != path or path.endswith(DOT_GIT)}
    new = sorted(repositories - {_of(path) for path in before})
    lines = [TOO_MANY] if TOO_MANY in after and TOO_MANY not in before else []
    lines += [f"made a git repository: {place}" for place in new]
    lines += [f"made {path}" for path in sorted(made) if _of(path) not in new]
    lines += [f"changed {path}" for path in sorted(after) if _worse(before.get(path), after[path])]
    lines += [f"removed {path}" for path in sorted(before) if path not in after and path != TOO_MANY]
    if len(lines) > _SHOWN:
        lines = [*lines[: _SHOWN - 1], f"and {len(lines) - _SHOWN + 1} more"]
    return tuple(lines)


def _worse(before: str | None, after: str) -> bool:
    return before not in {None, after} and not after.startswith(_PLAIN)


def _of(path: str) -> str:
    """The git directory that an entry belongs to, by its name."""
    for mark in ("/hooks/", *(f"/{name}" for name in _FILES)):
        head, found, tail = path.rpartition(mark)
        if found and (mark.endswith("/") or not tail):
            return head
    return path


def git_entries(workspace: Path, gave_up: Callable[[], object] = int) -> Iterator[Path]:
    """Each `.git` below `workspace`, and each directory that git takes for a bare repository.

    `gave_up` is called when there is more than is looked at.
    """
    waiting, seen = [str(workspace)], 0
    while waiting:
        directory = waiting.pop()
        below, names = [], set()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    seen += 1
                    names.add(entry.name)
                    if entry.name != DOT_GIT and entry.is_dir(follow_symlinks=False):
                        below.append(entry.path)
        except OSError:
            continue
        if DOT_GIT in names:
            yield Path(directory, DOT_GIT)
        if {"HEAD", "objects", "refs"} <= names:
            yield Path(directory)
        waiting += below
        if seen >= MAX_ENTRIES:
            gave_up()
            return


def _one(entry: Path, workspace: Path, found: dict[str, str]) -> None:
    try:
        mode = os.lstat(entry).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        _directory(entry, workspace, found)
    else:
        found[_name(entry, workspace)] = _digest(entry)


def _directory(place: Path, workspace: Path, found: dict[str, str]) -> None:
    """One git directory, with those of its submodules."""
    _entries(place, workspace, found)
    _links(place, workspace, found)
    _unfinished(place, workspace, found)
    for module in submodules(place):
        _entries(module, workspace, found)
        _unfinished(module, workspace, found)


def _unfinished(place: Path, workspace: Path, found: dict[str, str]) -> None:
    for name, runs in _UNFINISHED.items():
        text = content(place / name) or ""
        if runs.search(text) or len(text) > _UNFINISHED_SIZE:
            found[_name(place / name, workspace)] = _digest(place / name)


def submodules(place: Path) -> list[Path]:
    """The git directories of the submodules whose repository has the git directory `place`."""
    return [path for path, names in _walk(place / "modules") if "HEAD" in names]


def _entries(place: Path, workspace: Path, found: dict[str, str]) -> None:
    hooks = [path for path in _listed(place / "hooks") if not path.name.endswith(".sample")]
    for path in (*(place / name for name in _FILES), *hooks):
        if os.path.lexists(path):
            plain = path.name == "config" and _runs_nothing(path)
            found[_name(path, workspace)] = f"{_PLAIN if plain else ''}{_digest(path)}"


def _runs_nothing(config: Path) -> bool:
    """Whether it holds nothing but what says where things are. `ext::…` as a URL would be a command."""
    told = configured(config, "-z", "--list")
    items = [item.partition("\n") for item in (told or "").split("\0") if item]
    return bool(items) and all(_HARMLESS.fullmatch(key) and "::" not in value for key, _, value in items)


def _named(config: Path, tree: Path, workspace: Path, found: dict[str, str]) -> None:
    """Files of the workspace that a configuration, and what it includes, makes into such or into hooks."""
    waiting, seen = [config], {config}
    while waiting:
        file = waiting.pop()
        for key, place in _places(file, tree):
            if key != "core.hookspath" and place not in seen and len(seen) < _MOST_INCLUDED:
                seen.add(place)
                waiting.append(place)
            if not place.is_relative_to(workspace):
                continue
            for path in _listed(place) if place.is_dir() else [place]:
                if os.path.lexists(path):
                    found.setdefault(_name(path, workspace), _digest(path))


def _places(config: Path, tree: Path) -> Iterator[tuple[str, Path]]:
    """What one file of configuration names: key, and where that is."""
    names = r"^(core\.hookspath|include\.path|includeif\..*\.path)$"
    told = configured(config, "-z", "--get-regexp", names) or ""
    for item in filter(None, told.split("\0")):
        key, _, value = item.partition("\n")
        base = tree if key == "core.hookspath" else config.parent
        yield key, Path(os.path.normpath(base / os.path.expanduser(value)))


def _listed(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if not path.is_dir() or path.is_symlink()]
    except OSError:
        return []


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every directory below `modules` that may be a git directory: their names may have slashes."""
    for directory, below, files in os.walk(top):
        below[:] = [name for name in below if name not in {"objects", "refs", "logs", "hooks", "info"}]
        yield Path(directory), set(files)


def _digest(path: Path) -> str:
    """Of what is there, without waiting for a pipe or reading a giant."""
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            return _link(os.readlink(path))
        if not stat.S_ISREG(info.st_mode):
            return f"kind {stat.S_IFMT(info.st_mode):o}"
        with os.fdopen(os.open(path, _READ), "rb") as file:  # a sandbox may have put a pipe there by now
            content = hashlib.sha256(file.read(_LARGEST))
    except OSError:
        return _UNREAD
    executable = "x" if info.st_mode & 0o111 else "-"
    late = info.st_ctime_ns if info.st_size > _LARGEST else ""  # of a giant, only the beginning was read
    return f"{content.hexdigest()} {info.st_size} {executable} {late}"


def _name(path: Path, workspace: Path) -> str:
    """As it is shown, and kept as JSON."""
    return shown(str(path.relative_to(workspace) if path.is_relative_to(workspace) else path))


def shown(text: str) -> str:
    """Names are the agent's: nothing of them may draw on a terminal. What is no text becomes an escape."""
    plain = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in plain)
