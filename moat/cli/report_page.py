"""The page of `moat report`. Everything in it may come from an agent: it is text, and never markup.

No script, no request: the policy in its head forbids both, and allows the one style sheet by its hash.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Self

from moat.dataclass import dataclass
from moat.runtime.phases import Phase
from moat.runtime.records import RunRecord, describe_age
from moat.runtime.tally import Tally, host_of, in_words

_STYLE = """
:root { color-scheme: light dark; font: 14px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .2rem .6rem .2rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #8888; }
td { border-bottom: 1px solid #8883; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: #888; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #8881; padding: 1rem; overflow: auto; max-height: 30rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
svg { display: block; }
rect { fill: #48c; }
.number { text-align: right; white-space: nowrap; }
.text { overflow-wrap: anywhere; max-width: 28rem; }
.bars { width: 16rem; padding: .45rem 0; }
.quiet { color: #888; }
.denied { color: #c22; fill: #c22; }
.failed { color: #b70; fill: #b70; }
"""
_WIDTH = 256  # of the waterfall


@dataclass(frozen=True, slots=True)
class Exchange:
    """One line of the trace, as far as it is shown."""

    ended: float  # seconds since the epoch
    seconds: float
    method: str
    url: str
    status: str
    size: int  # bytes of the body that came back
    grants: tuple[str, ...]
    denial: str
    note: str  # a warning or an error

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        denial, warning = value.get("denial"), value.get("warning")
        duration = value.get("duration_ms")
        note = str(value.get("error") or "")
        if isinstance(warning, Mapping):
            note = str(warning.get("reason"))
        return cls(
            ended=_seconds(value.get("ts")),
            seconds=duration / 1000 if isinstance(duration, int | float) else 0.0,
            method=str(value.get("method")),
            url=str(value.get("url")),
            status=str(value.get("status") or "-"),
            size=size if isinstance(size := value.get("response_bytes"), int) else 0,
            grants=tuple(str(grant) for grant in value.get("grants") or ()),
            denial=str(denial.get("reason")) if isinstance(denial, Mapping) else "",
            note=note,
        )


@dataclass(frozen=True, slots=True)
class Facts:
    record: RunRecord
    tally: Tally
    exchanges: Sequence[Exchange]
    left_out: int  # older exchanges
    phases: Sequence[Phase]
    output: str  # its end


def page(facts: Facts) -> str:
    """The whole document."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape(facts.record.name)} - Moat</title>",
        f"<style>{_STYLE}</style></head><body>",
        *_head(facts),
        *_phases(facts.phases),
        *_hosts(facts.tally),
        *_credentials(facts.tally),
        *_denials(facts.tally),
        *_waterfall(facts),
        "<h2>Output</h2>",
        f"<pre>{_text(facts.output)}</pre>" if facts.output else '<p class="quiet">It printed nothing.</p>',
        "</body></html>",
    ]
    return "\n".join(parts)


def _head(facts: Facts) -> Iterator[str]:
    run = facts.record
    yield f"<h1>{escape(run.name)}</h1>"
    told = [
        ("run", run.id),
        ("state", f"{run.state}{f': {run.error}' if run.error else ''}"),
        ("command", shlex.join(run.argv)),
        ("workspace", run.workspace),
        ("runtime", run.runtime),
        ("began", _clock(run.created_at)),
        ("took", describe_age(run.created_at, run.ended_at) if run.ended_at else "it goes on"),
        ("grants", ", ".join(run.grants) or "none"),
        ("requests", f"{facts.tally.sums.requests + facts.tally.dropped:,}"),
        ("denied", f"{facts.tally.sums.denied:,}"),
        ("traffic", f"{in_words(facts.tally.sums.up)} up, {in_words(facts.tally.sums.down)} down"),
    ]
    yield "<dl>" + "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in told) + "</dl>"


def _phases(phases: Sequence[Phase]) -> Iterator[str]:
    if phases:
        yield "<h2>Life of the run</h2>"
        rows = [(phase.name, phase.began, took(phase)) for phase in phases]
        yield from _table(("phase", "began", "took"), rows)


def took(phase: Phase) -> str:
    return "it goes on" if phase.seconds is None else f"{phase.seconds:,.2f} s"


def _hosts(tally: Tally) -> Iterator[str]:
    if tally.hosts:
        yield "<h2>Hosts</h2>"
        ordered = sorted(tally.hosts.items(), key=lambda item: (-item[1].requests, item[0]))
        rows = [
            (name, f"{s.requests:,}", f"{s.denied:,}", f"{s.failed:,}", in_words(s.up), in_words(s.down))
            for name, s in ordered[:100]
        ]
        yield from _table(("host", "requests", "denied", "failed", "up", "down"), rows)


def _credentials(tally: Tally) -> Iterator[str]:
    if tally.credentials:
        yield "<h2>Credentials used</h2>"
        rows = [(name, f"{count:,}") for name, count in sorted(tally.credentials.items())]
        yield from _table(("grant", "requests"), rows)


def _denials(tally: Tally) -> Iterator[str]:
    if tally.denials:
        yield "<h2>Denied</h2>"
        rows = [
            (
                str(exchange.get("ts", "")),
                f"{exchange.get('method')} {host_of(exchange)}",
                str(exchange["denial"].get("reason")),
                str(exchange["denial"].get("rule")),
            )
            for exchange in tally.denials
        ]
        yield from _table(("when", "what", "why", "rule"), rows)


def _waterfall(facts: Facts) -> Iterator[str]:
    yield "<h2>Requests</h2>"
    if not facts.exchanges:
        yield '<p class="quiet">There were none.</p>'
        return
    if facts.left_out:
        yield f'<p class="quiet">{facts.left_out:,} older ones are not shown.</p>'
    began = min(exchange.ended - exchange.seconds for exchange in facts.exchanges)
    whole = max(max(exchange.ended for exchange in facts.exchanges) - began, 0.001)
    yield "<table><tr><th>request</th><th>status</th><th>size</th><th>time</th><th></th></tr>"
    for exchange in facts.exchanges:
        yield _row(exchange, (exchange.ended - exchange.seconds - began) / whole, exchange.seconds / whole)
    yield "</table>"


def _row(exchange: Exchange, start: float, length: float) -> str:
    kind = "denied" if exchange.denial else "failed" if exchange.status == "-" else ""
    note = exchange.denial or exchange.note
    told = f'<br><span class="{kind or "failed"}">{_text(note)}</span>' if note else ""
    used = f' <span class="quiet">with {_text(", ".join(exchange.grants))}</span>' if exchange.grants else ""
    bar = (
        f'<rect class="{kind}" x="{start * _WIDTH:.1f}" width="{max(2.0, length * _WIDTH):.1f}" height="9"/>'
    )
    return (
        f'<tr><td class="text">{_text(exchange.method)} {_text(exchange.url)}{used}{told}</td>'
        f'<td>{_text(exchange.status)}</td><td class="number">{in_words(exchange.size)}</td>'
        f'<td class="number">{exchange.seconds * 1000:,.0f} ms</td>'
        f'<td class="bars"><svg width="{_WIDTH + 4}" height="9">{bar}</svg></td></tr>'
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{name}</th>" for name in header) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f'<td class="text">{_text(cell)}</td>' for cell in row) + "</tr>"
    yield "</table>"


def _text(value: str) -> str:
    """As text of the document, without what would turn the direction of writing or hide."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in value)
    return escape(plain)


def _seconds(stamp: object) -> float:
    """Of an ISO stamp in UTC; 0 for what is none."""
    try:
        return dt.datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return 0.0


def _clock(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
