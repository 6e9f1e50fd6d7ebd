"""`journal` of `~/.moat/config.yaml`: second places for entries, and how large files may get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moat.config import size
from moat.config.check import Checker, Node
from moat.dataclass import dataclass
from moat.regex import regex

_SYSLOG = regex(r"local|(udp|tcp)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):[1-9][0-9]{0,4}")
_PLACES = ("file", "syslog", "command")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTo:
    """One second place: exactly one of `file`, `syslog` and `command` is given."""

    file: Path | None = None
    syslog: str | None = None  # `local`, `udp://host:port`, `tcp://host:port`
    command: tuple[str, ...] = ()  # gets entries on its stdin
    required: bool = False  # without it the run has no network


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalConfig:
    copy_to: tuple[CopyTo, ...] = ()
    max_size: int = 64 << 20  # bytes of a journal
    max_trace: int = 256 << 20  # bytes of network.jsonl


class JournalReader:
    """Reads the section; `directory` is what relative files start from."""

    def __init__(self, checker: Checker, directory: Path) -> None:
        self._check = checker
        self._directory = directory

    def read(self, node: Node) -> JournalConfig:
        known: dict[str, Callable[[Node], object]] = {
            "copy_to": self._copy_to,
            "max_size": lambda item: size.read(self._check, item, "journal.max_size"),
            "max_trace": lambda item: size.read(self._check, item, "journal.max_trace"),
        }
        found: dict[str, Any] = self._check.fields(node, "journal", known, {})
        return JournalConfig(**found)

    def _copy_to(self, node: Node) -> tuple[CopyTo, ...]:
        places = [
            self._place(item)
            for item in self._check.items(node, "journal.copy_to", "[{file: ~/moat-journal.jsonl}]")
        ]
        return tuple(place for place in places if place is not None)

    def _place(self, node: Node) -> CopyTo | None:
        known: dict[str, Callable[[Node], object]] = {
            "file": self._file,
            "syslog": self._syslog,
            "command": self._command,
            "required": lambda item: self._check.boolean(item, "required"),
        }
        what = "an entry of journal.copy_to"
        if node.id != "mapping":
            self._check.wrong(node, f"{what} is a mapping, e.g. {{file: ~/moat-journal.jsonl}}")
            return None
        given = [key.value for key, _ in node.value if key.value in _PLACES]
        found: dict[str, Any] = self._check.fields(node, what, known, {})
        if len(given) > 1 or not (given or {key.value for key, _ in node.value} - known.keys()):
            self._check.wrong(node, f"{what} needs exactly one of {', '.join(_PLACES)}")
            return None
        if found.get("required") and str(found.get("syslog", "")).startswith("udp:"):
            self._check.wrong(node, "UDP does not say whether anything arrived: it cannot be required")
        return CopyTo(**found) if set(given) & found.keys() else None

    def _file(self, node: Node) -> Path | None:
        text = self._check.text(node, "file")
        return None if text is None else self._directory / Path(text).expanduser()

    def _syslog(self, node: Node) -> str | None:
        return self._check.matching(
            node, "syslog", _SYSLOG, "`local`, `udp://host:port` or `tcp://host:port`"
        )

    def _command(self, node: Node) -> tuple[str, ...] | None:
        words = [
            self._check.text(item, "a word of command", integers=True)
            for item in self._check.items(node, "command", "[/usr/bin/ssh, loghost, cat >> moat.jsonl]")
        ]
        if not words and node.id == "sequence":
            self._check.wrong(node, "command has no word")
        return tuple(word for word in words if word is not None) or None
