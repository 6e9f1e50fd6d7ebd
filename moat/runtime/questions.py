"""What a question to the user is, and an answer: the words of supervisor, terminal and programs.

A host that is asked about is canonical (`moat.authority`): ASCII, so that it cannot draw on a terminal, and
an international name as the network sees it (`xn--…`). A path is as a sandbox sent it; so is a method, if it
is a word in capitals, else it is `?`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from moat.arguments import check, check_range
from moat.authority import Authority
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.rules import HostPattern, parse_host_pattern

Scope = Literal["once", "for", "run", "always"]
SCOPES: tuple[Scope, ...] = ("once", "for", "run", "always")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as people see it. Host and port are canonical, method and path the first request's."""

    host: str
    port: int
    scheme: str
    method: str
    path: str  # without query, at most 200 characters; as the sandbox sent it
    since: float  # seconds since the epoch
    requests: int  # that wait for the answer

    @property
    def name(self) -> str:
        """The host, with its port where that is not the one of HTTPS."""
        return named(self.host, self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the user says about a host. `always` is for this run here; the file is the command line's."""

    pattern: HostPattern  # with its port
    allow: bool
    scope: Scope = "run"
    seconds: int = 0  # of scope `for`
    by: str = ""  # where it was said, for the journal

    @classmethod
    def of_program(cls, host: str, *, allow: bool, scope: Scope, seconds: int) -> Answer:
        """What a program says. Raises UsageError for what is no answer."""
        check("host", host, str)
        check("allow", allow, bool)
        check("scope", scope, Scope)
        check("seconds", seconds, int)
        if scope == "for":
            check_range("seconds", seconds, 1)
        return cls(pattern=exactly(host), allow=allow, scope=scope, seconds=seconds, by="program")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "pattern": str(self.pattern)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Answer:
        """Raises UsageError for what is no answer."""
        match value:
            case {
                "pattern": str(text),
                "allow": bool(allow),
                "scope": "once" | "for" | "run" | "always" as scope,
                "seconds": int(seconds),
                "by": str(by),
            }:
                return cls(pattern=exactly(text), allow=allow, scope=scope, seconds=seconds, by=by[:100])
        raise UsageError("not an answer to a question")


def exactly(text: str) -> HostPattern:
    """`host`, `host:port` or `*.name`, for one port: 443 when none is written. Raises UsageError."""
    try:
        pattern = parse_host_pattern(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return replace(pattern, port=pattern.port or 443)


def named(host: str, port: int) -> str:
    """How an authority is written where people read it."""
    text = str(Authority(host, port))
    return text.removesuffix(":443")


def told(waiting: Sequence[Asked], missed: Sequence[Asked] = ()) -> dict[str, Any]:
    """The JSON that tells of questions."""
    return {"waiting": [asdict(asked) for asked in waiting], "missed": [asdict(asked) for asked in missed]}
