"""The runs that the arguments of `stop` and `destroy` mean, and one question for all of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moat.cli.output import say
from moat.runtime import records
from moat.runtime.records import RunRecord, describe_age


def named(runs: list[RunRecord], words: Sequence[str], *, yes: bool) -> list[RunRecord]:
    """Each run once. Raises RunNotFoundError, also for a word that may mean several when nobody can be asked.

    yes: all of them are meant.
    """
    found: dict[str, RunRecord] = {}
    for word in words:
        candidates = records.matching(runs, word)
        if len(candidates) > 1 and not (yes or _is_answerable()):
            raise records.AmbiguousRunError(repr(word), candidates)
        found |= {run.id: run for run in candidates}
    return list(found.values())


def agreed(verb: str, runs: Sequence[RunRecord], *, yes: bool) -> bool:
    """Whether to go on. Somebody at a terminal is asked once when there is more than one run."""
    if len(runs) < 2 or yes or not _is_answerable():
        return True
    for run in runs:
        say(f"  {run.id}  {run.state}  {run.name}  {describe_age(run.created_at)}")
    return ask(f"{verb} these {len(runs)} runs?")


def ask(question: str) -> bool:
    """Whether the user says yes at the terminal; an empty answer is a no."""
    sys.stdout.flush()
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    answer = ""
    try:
        answer = sys.stdin.readline()
    finally:
        if not answer.endswith("\n"):  # Ctrl-C, or Ctrl-D: the shell's prompt begins in a row of its own
            sys.stderr.write("\n")
    return answer.strip().lower() in {"y", "yes"}


def _is_answerable() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
