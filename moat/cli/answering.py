"""What `moat ask`, `moat approve` and `moat deny` have in common: which runs ask what, and answering them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from moat.cli.askbar import name
from moat.cli.output import say
from moat.dataclass import dataclass
from moat.errors import MoatError, RunNotFoundError
from moat.paths import Home
from moat.runtime import control, known
from moat.runtime.control import Connection, Frame
from moat.runtime.questions import Answer
from moat.runtime.records import RunRecord

_CONNECT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Open:
    """A question of a run, waiting or missed."""

    run: RunRecord
    question: Mapping[str, Any]  # `Asked` as JSON
    waiting: bool

    @property
    def host(self) -> str:
        return name(self.question)


def runs_that_ask(home: Home, run: str | None) -> list[RunRecord]:
    """The run of that name, which has to be alive; None: all that are. Raises RunNotFoundError, MoatError."""
    if run is None:
        return [record for record in known.all_runs(home) if record.socket and not record.state.ended]
    record = known.find(home, run)
    if record.state.ended or not record.socket:
        raise MoatError(f"{record.name} has ended ({record.state})", hint="`moat list` shows the runs")
    return [record]


def questions_of(record: RunRecord, *, alone: bool = False) -> list[Open]:
    """What the run asks, the waiting ones first. A run that does not answer must not hide what others ask.

    alone: there are no others. Raises StartError then.
    """
    try:
        return _questions_of(record)
    except MoatError as error:
        if alone:
            raise
        say(f"warning: {record.name}: {error}")
        return []


def _questions_of(record: RunRecord) -> list[Open]:
    with Connection(record.socket, "control", timeout=_CONNECT) as run:
        found = control.unpack_json(_reply(run, control.pack(Frame.QUESTIONS), Frame.ASKED))
    waiting = [Open(record, question, True) for question in found["waiting"]]
    return waiting + [Open(record, question, False) for question in found["missed"]]


def send(record: RunRecord, answer: Answer) -> int:
    """Answer a run; returns how many requests waited for it. Raises MoatError when it does not take it."""
    with Connection(record.socket, "control", timeout=_CONNECT) as run:
        order = control.pack_json(Frame.ANSWER, answer.to_json())
        return int(control.unpack_json(_reply(run, order, Frame.ANSWERED))["requests"])


def _reply(run: Connection, order: bytes, wanted: Frame) -> bytes:
    try:
        run.send(order)
        frame = run.receive()
    except ConnectionError:
        frame = None
    except OSError as error:
        raise MoatError(f"the run does not answer: {error.strerror or 'no answer in time'}") from None
    match frame:
        case (kind, data) if kind is wanted:
            return data
        case (Frame.NOTICE, data):
            raise MoatError(data.decode(errors="replace"), hint="`moat ask` shows what waits")
    raise RunNotFoundError("the run has just ended", hint="`moat list` shows the runs")


def honest(host: str) -> str:
    """A host for people: as the network sees it, and, for an international name, which letters those are.

    `xn--pple-43d.com (international: CYRILLIC and LATIN letters)`. The letters themselves are not shown: that
    they look like others is what they are used for.
    """
    scripts: set[str] = set()
    for label in host.partition(":")[0].split("."):
        if label.startswith("xn--"):
            letters = label[4:].encode("ascii").decode("punycode")
            scripts |= {unicodedata.name(c, "UNNAMED").split()[0] for c in letters if c.isalpha()}
    return f"{host} (international: {' and '.join(sorted(scripts))} letters)" if scripts else host
