"""Which key calls Moat: the option or MOAT_CHORD, else `chord:` of config.yaml, else ctrl-/."""

from __future__ import annotations

import os

from moat.chord import DEFAULT, Chord, parse
from moat.paths import Home


def chosen(home: Home) -> Chord:
    """Raises UsageError, ConfigError."""
    if text := os.environ.get("MOAT_CHORD"):
        return parse(text)
    try:
        said = b"chord" in home.config_file.read_bytes()  # reading it all takes longer than to attach
    except OSError:
        said = False
    if not said:
        return DEFAULT
    from moat.config import load_user

    return load_user(home).chord
