"""YAML text to nodes with positions; the only importer of ruamel.yaml, itself imported late.

The nodes are checked as they are (`moat.config.check`) and never turned into Python values by the
library: a tag stays a word, a duplicate key stays visible, and `3.10` keeps its zero.
"""

from __future__ import annotations

import warnings
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.reader import ReaderError

from moat.config.check import Node

MAX_DEPTH = 16  # the deepest key that exists needs 5
MAX_ALIASES = 64  # a few shared values; more is an attack ("billion laughs")


class MalformedError(Exception):
    """The text is no YAML that Moat reads. `line` and `column` count from 1."""

    def __init__(self, line: int, column: int, text: str) -> None:
        super().__init__(text)
        self.line, self.column, self.text = line, column, text


class _Composer(Composer):
    """Stops a document that is nested or repeated beyond reason while it is being read."""

    nesting = 0
    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        self.aliases += isinstance(event, AliasEvent)
        if self.aliases > MAX_ALIASES:
            raise _at(event.start_mark, f"more than {MAX_ALIASES} aliases")
        if self.nesting >= MAX_DEPTH:
            raise _at(event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
        self.nesting += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.nesting -= 1


def compose(text: str) -> Node | None:
    """The root node of the one document in `text`, or None when it is empty. Raises MalformedError."""
    yaml = YAML(typ="rt", pure=True)
    yaml.Composer = _Composer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a reused anchor is legal YAML
            node: Node | None = yaml.compose(text)
            return node
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _at(mark, _plain(error.problem or error.context or "malformed YAML")) from None
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise MalformedError(line, column, "control characters are not allowed here") from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise MalformedError(1, 1, f"malformed YAML: {error}") from None


def _at(mark: Any, text: str) -> MalformedError:
    return MalformedError(mark.line + 1, mark.column + 1, text) if mark else MalformedError(1, 1, text)


def _plain(problem: str) -> str:
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    if "another document" in problem:
        return "only one document is read; remove everything from the second `---` on"
    if "mapping values are not allowed" in problem:
        return "a second `: ` in one line; put the value in quotes"
    return f"malformed YAML: {problem}"
