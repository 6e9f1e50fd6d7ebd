"""What a coding agent needs of its run: arguments, files in HOME, variables, mounts, dependencies.

An agent sees what is known of its credential and never the credential. What it gives is merged into
the `RunRequest`; what the user asked for in `agent.yaml` or by flag stands next to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from moat.dataclass import dataclass
from moat.grants import CredentialInfo
from moat.runtime.sandbox import HomeFile, Mount

_NO_ENV: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The agent's part of a run."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)
    home_files: tuple[HomeFile, ...] = ()
    mounts: tuple[Mount, ...] = ()
    dependencies: tuple[str, ...] = ()  # of the image; the embedded runtime has the host's


class Agent(Protocol):
    """One coding agent with the options of one run."""

    @property
    def name(self) -> str:
        """Its label in `moat list`: `claude`."""
        ...

    @property
    def grant(self) -> str:
        """The grant without which it cannot work."""
        ...

    def setup(self, *, workspace: Path, credential: CredentialInfo, runtime: str) -> Setup:
        """Everything that it needs in a sandbox made by `runtime`. Raises StartError with a hint."""
        ...
