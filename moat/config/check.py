"""A small schema checker over YAML nodes: every problem is kept with its place, none stops the check.

Each method looks at one node and gives the value, or None after it has noted what is wrong. What a
key may hold is said by the caller in plain code (`moat.config.workspace`, `moat.config.user`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from moat.errors import ConfigError
from moat.regex import regex

MAX_PROBLEMS = 50  # more do not help anybody
MAX_NODES = 20_000  # aliases can make a small file long

_TAG = "tag:yaml.org,2002:"
_VARIABLE = regex(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_INTEGER = regex(r"0|-?[1-9][0-9]{0,17}")
_KINDS = {
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "null": "nothing",
    "timestamp": "a date",
    "seq": "a list",
    "map": "a mapping",
}


class Node(Protocol):
    """What is used of a node of ruamel.yaml, which is imported only when a file has to be read."""

    id: str  # `scalar`, `sequence`, `mapping`
    tag: Any
    value: Any  # text; list of nodes; list of (key node, value node)
    start_mark: Any  # .line and .column count from 0


Read = Callable[[Node], object]


class TooMuchError(Exception):
    """So much is wrong that reading on is pointless."""


class Checker:
    """Collects the problems of one file. `file` is the name that the messages begin with."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._problems: dict[str, None] = {}
        self._seen = 0

    def problem(self, line: int, column: int, text: str) -> None:
        self._problems[f"{self._file}:{line}:{column}: {text}"] = None
        if len(self._problems) >= MAX_PROBLEMS:
            raise TooMuchError

    def wrong(self, node: Node, text: str) -> None:
        self.problem(node.start_mark.line + 1, node.start_mark.column + 1, text)

    def finish(self) -> None:
        """Raise ConfigError when anything was wrong."""
        if self._problems:
            raise ConfigError(tuple(self._problems))

    def text(self, node: Node, what: str, *, integers: bool = False) -> str | None:
        """A string that is not empty. With `integers`, `8080` is taken as it is written."""
        if node.id != "scalar":
            self._expected(node, f"{what} must be a string")
            return None
        kind = kind_of(node)
        value = str(node.value)
        if kind == "int" and integers and _PLAIN_INTEGER.fullmatch(value):
            return value
        if kind in {"int", "float", "bool", "timestamp"}:
            # An unquoted 3.10 is the number 3.1 to YAML: only quotes keep what was meant.
            self.wrong(node, f'{what} must be a string; put it in quotes: "{value}"')
            return None
        if kind != "str":
            self._expected(node, f"{what} must be a string")
            return None
        if any(character < " " and character not in "\t\n" for character in value) or "\x7f" in value:
            self.wrong(node, f"{what} must not hold control characters")
            return None
        return value

    def matching(self, node: Node, what: str, pattern: re.Pattern[str], rule: str) -> str | None:
        """A string of the form `pattern`; `rule` says the form in words."""
        value = self.text(node, what)
        if value is not None and not pattern.fullmatch(value):
            self.wrong(node, f"{value!r} is not {rule}")
            return None
        return value

    def choice(
        self, node: Node, what: str, allowed: Collection[str], later: Collection[str] = ()
    ) -> str | None:
        value = self.text(node, what)
        if value is None or value in allowed:
            return value
        if value in later:
            self.wrong(node, f"{what} {value!r} is not supported yet")
        else:
            self.wrong(node, f"{what} must be one of {', '.join(allowed)}{meant(value, allowed)}")
        return None

    def integer(self, node: Node, what: str, low: int, high: int) -> int | None:
        if node.id != "scalar" or kind_of(node) != "int" or not _PLAIN_INTEGER.fullmatch(node.value):
            self._expected(node, f"{what} must be a whole number")
            return None
        value = int(node.value)
        if not low <= value <= high:
            self.wrong(node, f"{what} must be between {low} and {high}")
            return None
        return value

    def boolean(self, node: Node, what: str) -> bool | None:
        if node.id != "scalar" or kind_of(node) != "bool":
            self._expected(node, f"{what} must be true or false")
            return None
        return str(node.value).lower() == "true"

    def items(self, node: Node, what: str, example: str) -> Iterator[Node]:
        """The nodes of a list; `example` shows how one is written."""
        if node.id != "sequence":
            self._expected(node, f"{what} must be a list, e.g. {example}")
            return
        for item in node.value:
            self._count(item)
            yield item

    def pairs(self, node: Node, what: str) -> Iterator[tuple[str, Node, Node]]:
        """Key, key node and value node of a mapping; notes keys that are no strings or come twice."""
        if node.id != "mapping":
            self._expected(node, f"{what} must be a mapping")
            return
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            self._count(key_node)
            key = self._key(key_node)
            if key is None:
                continue
            if key in seen:
                self.wrong(key_node, f"duplicate key {key!r}, first in line {seen[key]}")
                continue
            seen[key] = key_node.start_mark.line + 1
            yield key, key_node, value

    def fields(
        self, node: Node, what: str, known: Mapping[str, Read], refused: Mapping[str, str]
    ) -> dict[str, object]:
        """A mapping with fixed keys; `refused` gives the reason for keys that cannot be used.

        A key with a problem, or with nothing after the colon, is left out of the result.
        """
        found: dict[str, object] = {}
        for key, key_node, value in self.pairs(node, what):
            if key in refused:
                self.wrong(key_node, f"{key!r}: {refused[key]}")
            elif key not in known:
                self.wrong(key_node, f"unknown key {key!r}{meant(key, known)}")
            elif kind_of(value) == "null":
                self.wrong(value, f"{key} has no value; remove the key or give it one")
            else:
                read = known[key](value)
                if read is not None:
                    found[key] = read
        return found

    def variables(self, node: Node, what: str) -> Mapping[str, str]:
        """A mapping of environment variables to their values."""
        found: dict[str, str] = {}
        for name, place, value in self.pairs(node, what):
            if not _VARIABLE.fullmatch(name):
                self.wrong(place, f"{name!r} is not the name of an environment variable")
            elif (text := self.text(value, f"{what}.{name}", integers=True)) is not None:
                found[name] = text
        return MappingProxyType(found)

    def _key(self, node: Node) -> str | None:
        if node.id != "scalar":
            self.wrong(node, "a key must be a string")
            return None
        if kind_of(node) == "merge":
            self.wrong(node, "merge keys (`<<`) are not supported")
            return None
        return str(node.value)

    def _count(self, node: Node) -> None:
        self._seen += 1
        if self._seen > MAX_NODES:
            self.wrong(node, f"more than {MAX_NODES} values")
            raise TooMuchError

    def _expected(self, node: Node, text: str) -> None:
        kind = _KINDS.get(
            kind_of(node), "a string" if kind_of(node) == "str" else f"a value tagged {node.tag}"
        )
        self.wrong(node, f"{text}, not {kind}")


def kind_of(node: Node) -> str:
    """`str`, `int`, `float`, `bool`, `null`, `seq`, `map`…; a foreign tag stays as it is."""
    return str(node.tag).removeprefix(_TAG)


def meant(word: str, known: Collection[str]) -> str:
    """`; did you mean 'grants'?`, or nothing when no known word is near."""
    from difflib import get_close_matches  # 2 ms, which only a mistake costs

    near = get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
