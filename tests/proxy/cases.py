r"""The corpus: raw messages with what must become of them, one text file per topic in `corpus/`.

A file is a list of blocks, separated by empty lines; `#` starts a comment line.

    piece POST                                a beginning that many cases share
    | POST / HTTP/1.1\r\n
    | Host: a.example\r\n

    case a length with a plus sign            a name, unique in the whole corpus
    read request                              or: response to METHOD [upgrade TOKEN], or: chunked
    rfc 9112 §6.3
    refuse bad-length 400                     the code and status, or: wait, or: accept …
    & POST                                    the piece
    |*3 X: y\r\n                              raw bytes, three times
    | Content-Length: +5\r\n
    | \r\n

`accept` is followed by the framing and `keep` or `close`, and where they apply `expect`, `upgrade TOKEN`. What
the message carries stands behind `=`, and bytes that follow the message and are not its own behind `>`.

Bytes: printable ASCII is itself, except the backslash: `\r \n \t \\ \xHH`. A line does not end in a space
(`\x20`), and the file's own line ends mean nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
_ESCAPE = re.compile(r"\\(?:([rnt\\])|x([0-9a-f]{2})|)")
_PLAIN = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}
_BYTES = re.compile(r"([|=>])(?:\*([0-9]+))? (.*)")


@dataclass(frozen=True)
class Accepted:
    """A message that is understood."""

    framing: str
    keep: bool
    expect: bool = False
    upgrade: str = ""
    payload: bytes = b""


@dataclass(frozen=True)
class Refused:
    code: str
    status: int


@dataclass(frozen=True)
class Unfinished:
    """Nothing wrong so far, and not a whole message."""


Verdict = Accepted | Refused | Unfinished


@dataclass(frozen=True)
class Case:
    name: str
    reads: str  # `request`, `response` or `chunked`
    rfc: str
    verdict: Verdict
    data: bytes
    rest: bytes = b""  # follows `data` and does not belong to it
    method: bytes = b"GET"  # what a response answers
    asked: bytes = b""  # the protocol that its request wanted to upgrade to

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def wire(self) -> bytes:
        return self.data + self.rest

    @property
    def refused_in_head(self) -> bool:
        return isinstance(self.verdict, Refused) and not self.verdict.code.startswith(
            ("chunk", "bad-trailer")
        )

    def cuts(self) -> Iterator[int]:
        """Every split point; of what is huge (a test of a limit), some from each part of it."""
        size = len(self.wire)
        return iter(range(1, size) if size <= 2000 else {*range(1, 200), *range(200, size, size // 50)})


def files() -> list[Path]:
    return sorted(CORPUS.glob("*.txt"))


@functools.cache
def load(path: Path) -> tuple[Case, ...]:
    """The cases of one file. Raises ValueError that names the place for anything not understood."""
    pieces: dict[str, bytes] = {}
    cases = []
    for block in re.split(r"\n(?:[ \t]*\n)+", path.read_text()):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not lines:
            continue
        word, _, name = lines[0].partition(" ")
        try:
            if word == "piece":
                pieces[name] = b"".join(parse_bytes(line, "|") for line in lines[1:])
            else:
                cases.append(_case(lines, pieces))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path.name}: {lines[0]}: {error}") from error
    return tuple(cases)


def everything() -> list[Case]:
    return [case for path in files() for case in load(path)]


def _case(lines: list[str], pieces: dict[str, bytes]) -> Case:
    told: dict[str, list[str]] = {}
    sent = {"|": b"", "=": b"", ">": b""}
    for line in lines:
        word, _, text = line.partition(" ")
        if word == "&":
            sent["|"] += pieces[text]
        elif word[0] in sent:
            sent[word[0]] += parse_bytes(line, word[0])
        elif word in {"case", "read", "rfc", "refuse", "wait", "accept"} and word not in told:
            told[word] = text.split(" ")
        else:
            raise ValueError(f"{line!r} is not understood")
    kind, *more = told["read"]
    options = dict(zip(more[::2], more[1::2], strict=True))
    return Case(
        name=" ".join(told["case"]),
        reads=kind,
        rfc=" ".join(told["rfc"]),
        verdict=_verdict(told, sent["="]),
        data=sent["|"],
        rest=sent[">"],
        method=options.pop("to", "GET").encode(),
        asked=options.pop("upgrade", "").encode(),
    )


def _verdict(told: dict[str, list[str]], payload: bytes) -> Verdict:
    if "refuse" in told:
        code, status = told["refuse"]
        return Refused(code, int(status))
    if "wait" in told:
        return Unfinished()
    framing, end, *more = told["accept"]
    if end not in {"keep", "close"}:
        raise ValueError("accept FRAMING keep|close")
    expect = more[:1] == ["expect"]
    upgrade = more[1] if more[:1] == ["upgrade"] else ""
    return Accepted(framing, end == "keep", expect, upgrade, payload)


def parse_bytes(line: str, kind: str) -> bytes:
    match = _BYTES.fullmatch(line)
    if match is None or match[1] != kind or line.endswith(" ") or not (line.isascii() and line.isprintable()):
        raise ValueError(f"{line!r} is not a line of bytes")
    text = _ESCAPE.sub(_unescape, match[3])
    return text.encode("latin-1") * int(match[2] or 1)


def _unescape(match: re.Match[str]) -> str:
    if match[1]:
        return _PLAIN[match[1]]
    if match[2]:
        return chr(int(match[2], 16))
    raise ValueError(f"a backslash is written \\\\: {match.string!r}")
