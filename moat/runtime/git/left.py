"""What the last run of a workspace left for git to obey. Asked before every run, so it loads little."""

from __future__ import annotations

import json
import os
from pathlib import Path

from moat.paths import Home
from moat.runtime.git.layout import find
from moat.runtime.records import RunRecord

FILE = "git.json"  # of a run: what was obeyed before it; gone when it has been compared


def left_by(home: Home, workspace: Path, runs: list[RunRecord]) -> tuple[str, tuple[str, ...]] | None:
    """What the last run of `workspace` that has ended changed, with its name. `runs`: newest first.

    A run whose supervisor was killed has not compared; that is made up for here.
    """
    place = Path(os.path.realpath(workspace))
    last = next((run for run in runs if run.workspace == str(place) and run.state.ended), None)
    if last is None:
        return None
    changes = last.git_changes
    try:
        before = json.loads((home.run(last.id) / FILE).read_bytes())
    except (OSError, ValueError):
        pass
    else:
        from moat.runtime.git import obeyed, reflogs

        repository = find(place)
        if repository is not None and repository.linked:
            reflogs.bring_back(repository.common, home.run(last.id))
        links = obeyed.cut(place, before)
        changes = (*links, *obeyed.compare(before, obeyed.look(place, common=False)))
    return (last.name, changes) if changes else None
