"""A file that somebody may take for the configuration of a workspace, and that is not read.

Without a configuration a run may ask for every public host: who wrote a stricter one must not believe that it
holds.
"""

from __future__ import annotations

from pathlib import Path

from moat.config.workspace import FILES


def overlooked(workspace: Path) -> str | None:
    """What to tell of it where `workspace` has no configuration; None: there is none."""
    for name in FILES:
        other = Path(name).with_suffix(".yml")
        if (workspace / other).exists():
            return f"{other} is not read: rename it to {name}"
    for above in _repository(workspace):
        for name in FILES:
            if (above / name).exists():
                return f"{above / name} is not read: it is for runs in {above}"
    return None


def _repository(workspace: Path) -> list[Path]:
    """The directories above, up to the working tree that this one is a part of, if it is."""
    if (workspace / ".git").exists():
        return []
    above = list(workspace.parents)
    end = next((number for number, place in enumerate(above) if (place / ".git").exists()), -1)
    return above[: end + 1]
