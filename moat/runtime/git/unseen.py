"""Commands in a repository's configuration that nobody has looked at since a run could write them.

`git worktree add` passes every file through the filters that the configuration names, `git status` some,
and a repository that is complete only with its remote has git fetch what is missing. The fence keeps an
agent from the workspace's own configuration, but not from making a repository where there was none.
"""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import records
from moat.runtime.git.command import asks
from moat.runtime.tampering import lived

_RUN = (
    r"^(filter\..*\.(clean|smudge|process)"
    r"|remote\..*\.(promisor|partialclonefilter)|extensions\.partialclone)$"
)


def check(home: Home, common: Path) -> None:
    """Raises UsageError when git would run what a run may have written. `common`: a git directory."""
    files = _files(common)
    for run in records.read_all(home) if files else ():
        for file in files:
            if file.is_relative_to(run.workspace) and lived(run, _changed(file)):
                raise UsageError(
                    f"{file} was changed while run {run.name} could write it, maybe by the agent, and has "
                    "commands that git would run",
                    hint=f"review it; if you want it, and no run is alive there: touch {quote(str(file))}",
                )


def _files(common: Path) -> list[Path]:
    """Where the commands stand, files that are included too."""
    told = asks("--git-dir", str(common), "config", "-z", "--show-origin", "--get-regexp", _RUN, cwd=common)
    origins = (told or "").split("\0")[:-1:2]
    return [Path(os.path.realpath(common / name.removeprefix("file:"))) for name in dict.fromkeys(origins)]


def _changed(file: Path) -> float:
    return max(os.stat(file).st_ctime, os.lstat(file).st_ctime)
