"""Which key calls Moat: the option or MOAT_CHORD, else `chord:` of config.yaml, else ctrl-/."""

from __future__ import annotations

import os

from moat.config import load_user
from moat.config.chord import DEFAULT, Chord, parse
from moat.paths import Home


def chosen(home: Home) -> Chord:
    """Raises UsageError, ConfigError."""
    if text := os.environ.get("MOAT_CHORD"):
        return parse(text)
    try:
        said = b"chord" in home.config_file.read_bytes()  # to read YAML takes longer than to attach
    except OSError:
        said = False
    return load_user(home).chord if said else DEFAULT
