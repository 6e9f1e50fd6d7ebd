"""The vocabulary is closed: code, table and document say the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import moat
from moat.journal.events import EVENTS
from tests.conftest import REPOSITORY

PACKAGE = Path(moat.__file__).parent
_SENDERS = {"record", "often", "_note"}  # `Journal.record`, and its callers that pass an event on


def recorded() -> Iterator[tuple[str, str, set[str]]]:
    """(place, event, fields) of every call that names an event."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                first = node.args[0]
                if node.func.attr in _SENDERS and isinstance(first, ast.Constant) and "." in str(first.value):
                    fields = {str(word.arg) for word in node.keywords}
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", str(first.value), fields


def test_every_event_of_the_code_is_in_the_table() -> None:
    calls = list(recorded())
    assert len(calls) > 8
    for place, event, fields in calls:
        assert event in EVENTS, f"{place}: {event} is not in moat/journal/events.py"
        unknown = fields - {*EVENTS[event][1], "None"}
        assert not unknown, f"{place}: {event} has no field {unknown}"


def test_every_event_of_the_table_is_recorded_somewhere() -> None:
    text = "".join(p.read_text() for p in PACKAGE.rglob("*.py") if p.name != "events.py")
    assert [event for event in EVENTS if f'"{event}"' not in text] == []


def test_the_document_has_the_same_table() -> None:
    rows = re.findall(
        r"^\| `([a-z.-]+\.[a-z_]+)` \| (.*) \| ?(.*) ?\|$",
        (REPOSITORY / "docs/audit.md").read_text(),
        re.MULTILINE,
    )
    shown = {event: (meaning, tuple(re.findall(r"`(\w+)`", fields))) for event, meaning, fields in rows}
    assert shown == dict(EVENTS)
