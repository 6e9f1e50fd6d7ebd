"""`moat ask [run]`: what runs wait for the user to decide."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli.answering import Open, honest, questions_of, runs_that_ask
from moat.cli.askbar import ascii_only
from moat.cli.output import emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.paths import Home
from moat.runtime.records import describe_age


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat ask",
        description="Show which hosts runs with `network.policy: ask` wait for, and for which ones nobody "
        "answered in time. `moat approve` and `moat deny` answer.",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: every run)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    records = runs_that_ask(Home.from_environment(), options.run)
    found = [question for record in records for question in questions_of(record, alone=len(records) == 1)]
    if options.json:
        emit_json([_json(question) for question in found])
    elif found:
        emit(table(("RUN", "HOST", "STATE", "AGE", "REQUEST"), map(_row, found)))
    else:
        say("nothing waits for an answer")
    return 0


def _row(question: Open) -> tuple[str, ...]:
    asked = question.question
    count = int(asked["requests"])
    state = f"waits ({count})" if question.waiting else "refused, no answer"
    request = ascii_only(f"{asked['method']} {asked['path']}")
    return question.run.name, honest(question.host), state, describe_age(asked["since"]), request


def _json(question: Open) -> dict[str, object]:
    return {
        "run": question.run.id,
        "name": question.run.name,
        "waiting": question.waiting,
        **question.question,
    }
