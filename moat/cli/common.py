"""Options that several commands have. They end up in the environment of this process."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any


def add_credential_options(parser: argparse.ArgumentParser) -> None:
    """`--profile NAME` and `--no-prompt`; the same as MOAT_PROFILE and MOAT_NO_PROMPT=1."""
    add = parser.add_argument
    add("--profile", action=_Environment, variable="MOAT_PROFILE", metavar="NAME", help="of credentials")
    add("--no-prompt", action=_Environment, variable="MOAT_NO_PROMPT", nargs=0, help="ask nothing")


def use_profile(name: str) -> None:
    """From now on the credentials of that profile are meant; "" changes nothing."""
    if name and name != (os.environ.get("MOAT_PROFILE") or "default"):
        os.environ["MOAT_PROFILE"] = name


def add_chord_option(parser: argparse.ArgumentParser) -> None:
    """`--chord KEY`, of commands that attach to a terminal; the same as MOAT_CHORD."""
    add = parser.add_argument
    add("--chord", action=_Environment, variable="MOAT_CHORD", metavar="KEY", help="calls Moat (ctrl-/)")


class _Environment(argparse.Action):
    """Puts the option's value, or `1`, into a variable of this process."""

    def __init__(self, *, variable: str, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, **options)
        self._variable = variable

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        del parser, namespace, option_string
        os.environ[self._variable] = values if isinstance(values, str) else "1"
