"""argparse, with its complaints as errors of Moat: `moat: error:`, `moat: hint:`, status 2."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

from moat.errors import UsageError

# Compiled when there is something to complain about: every command imports this.
_CHOICE = r"argument (?P<where>.+?): invalid choice: (?P<got>.+?) \(choose from (?P<choices>.*)\)$"
_VALUE = r"argument (?P<where>.+?): invalid \S+ value: (?P<got>.*)$"
_ARGUMENT = r"argument (?P<where>.+?): (?P<what>.*)$"
_NONE: Mapping[str, str] = MappingProxyType({})
_MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit.

    foreign: options of another program that somebody may try here, and what does the same.
    """

    def __init__(
        self,
        *,
        formatter_class: Any = argparse.HelpFormatter,
        foreign: Mapping[str, str] = _NONE,
        **options: Any,
    ) -> None:
        # argparse makes a formatter for each argument, which asks for the width: 5 ms of imports.
        super().__init__(formatter_class=partial(formatter_class, width=80), **options)
        self._helps = formatter_class
        self._foreign = foreign

    def format_help(self) -> str:
        self.formatter_class = self._helps
        return super().format_help()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise self._unknown(unknown)
        return found

    def error(self, message: str) -> NoReturn:
        if choice := re.match(_CHOICE, message):
            raise self._not_a_choice(choice)
        if message.startswith(_MISSING):
            raise self._missing(message.removeprefix(_MISSING))
        if value := re.match(_VALUE, message):
            raise UsageError(f"{value['where']}: {value['got']} is not a valid value", hint=self._more())
        if argument := re.match(_ARGUMENT, message):
            message = f"{argument['where']}: {argument['what']}"
        raise UsageError(message, hint=self._more())

    def _unknown(self, arguments: list[str]) -> UsageError:
        option = next((argument for argument in arguments if argument.startswith("-")), None)
        if option is None:
            return UsageError(f"unexpected argument {arguments[0]!r}", hint=self._more())
        name = option.partition("=")[0]
        hint = self._foreign.get(name) or _meant(name, _options(self)) or self._more()
        return UsageError(f"unknown option {name}", hint=hint)

    def _missing(self, names: str) -> UsageError:
        named = (action.choices for action in self._actions if names in {action.dest, action.metavar})
        choices = next(filter(None, named), ())
        one = f", one of {', '.join(map(str, choices))}" if choices else ""
        return UsageError(f"{names} is missing{one}", hint=self._more())

    def _not_a_choice(self, found: re.Match[str]) -> UsageError:
        got, where = found["got"].strip("'\""), found["where"]
        choices = [choice.strip("'\" ") for choice in found["choices"].split(",")]
        text = f"{where}: {got!r} is not one of {', '.join(choices)}"
        return UsageError(text, hint=_meant(got, choices) or self._more())

    def _more(self) -> str:
        return f"`{self.prog} --help` tells more"


def _meant(got: str, choices: Iterable[str]) -> str | None:
    """Hyphens in front make every short option look like every other, so they do not count."""
    from difflib import get_close_matches  # 4 ms, which only a mistake costs

    names = {choice.lstrip("-"): choice for choice in choices}
    near = get_close_matches(got.lstrip("-"), names, n=1)
    return f"did you mean `{names[near[0]]}`?" if near else None


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The names of its options, and of those of its actions (`moat system prune --all`)."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)
