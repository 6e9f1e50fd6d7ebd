"""Lists of tools on their way to the sandbox, without the tools that may not be called. Sans-IO.

This only keeps a model from asking in vain; what decides is `mcp.judge`. Everything that holds no such list
leaves byte for byte as it came, and an event leaves when its last byte has come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from moat.dataclass import dataclass
from moat.proxy.fields import Headers
from moat.proxy.head import ResponseHead
from moat.proxy.mcp import McpEndpoint, ToolPolicy
from moat.proxy.scrub import BodyScrubber, UnreadableBodyError

_END_OF_EVENT = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_FULL = "lists of tools of too many answers are held at one time"
_LINE = re.compile(r"\r\n|\n|\r")
# `"tools"`, each letter as it is or as JSON's escape of it, and the longest such spelling.
_MARK = re.compile(b'"%b"' % b"".join(rb"(?:%c|\\u00(?i:%x))" % (letter, letter) for letter in b"tools"))
_LONGEST_MARK = len('"') + len("tools") * len("\\u0000") + len('"')


class _Filter(Protocol):
    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class ToolFilter:
    """A response body, decoded and scrubbed by `scrubber`, its lists of tools shortened."""

    decoded = True  # the body leaves with another length

    def __init__(self, scrubber: BodyScrubber, inner: _Filter) -> None:
        self._scrubber = scrubber
        self._inner = inner

    def feed(self, data: bytes | bytearray | memoryview, *, last: bool = False) -> Iterator[bytes]:
        """What can leave now. Raises UnreadableBodyError."""
        for piece in self._scrubber.feed(data, last=last):
            if clean := self._inner.feed(piece):
                yield clean

    def finish(self) -> bytes:
        """What was held back. Raises UnreadableBodyError."""
        rest = self._scrubber.finish()
        return (self._inner.feed(rest) if rest else b"") + self._inner.finish()

    def headers(self, headers: Headers) -> Headers:
        return tuple(
            field for field in self._scrubber.headers(headers) if field[0].lower() != b"content-length"
        )


class LoginNeededError(Exception):
    """The server wants to know who asks, and a client would now go and fetch a token of its own."""

    def __init__(self, server: McpEndpoint) -> None:
        super().__init__(server.name)
        self.server = server


def _nobody(_: Headers) -> None:
    """No other server is known."""


def _any(_: int) -> bool:
    """There is room for so many bytes."""
    return True


@dataclass(frozen=True, slots=True)
class McpResponse:
    """What is done to the response of an MCP server, or of a host that may turn out to be one."""

    endpoint: McpEndpoint | None
    challenged: Callable[[Headers], McpEndpoint | None] = _nobody  # whose a 401 with these headers is
    lists: bool = False  # the request asks for a list of tools
    limit: int = 0
    room: Callable[[int], bool] = _any  # whether this response may hold so many bytes

    @property
    def _policy(self) -> ToolPolicy | None:
        """What a list has to be shortened by."""
        policy = self.endpoint.policy if self.endpoint is not None else None
        return None if policy is None or policy.audit else policy

    @property
    def filters(self) -> bool:
        return self._policy is not None

    def check(self, head: ResponseHead) -> None:
        """Raises LoginNeededError."""
        if head.status == 401 and (server := self.endpoint or self.challenged(head.headers)) is not None:
            raise LoginNeededError(server)

    def filtered(self, scrubber: BodyScrubber, content_type: bytes) -> BodyScrubber | ToolFilter:
        """`scrubber` with a filter behind it, if the response can hold a list of tools."""
        policy = self._policy
        if policy is None:
            return scrubber
        if content_type == b"text/event-stream":
            # Also without a question for the list: a stream that is taken up again repeats old answers.
            return ToolFilter(scrubber, _Events(policy, self.limit, self.room))
        return ToolFilter(scrubber, _Json(policy, self.limit, self.room)) if self.lists else scrubber


class _Json:
    """One JSON document, held until it is complete."""

    def __init__(self, policy: ToolPolicy, limit: int, room: Callable[[int], bool] = _any) -> None:
        self._policy = policy
        self._limit = limit
        self._room = room
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._held += data
        if len(self._held) > self._limit:
            raise UnreadableBodyError(f"the list of tools has more than {self._limit} bytes")
        if not self._room(len(self._held)):
            raise UnreadableBodyError(_FULL)
        return b""

    def finish(self) -> bytes:
        return _shortened(bytes(self._held), self._policy)


class _Events:
    """Server-sent events, one by one.

    An event that grows beyond the limit leaves as it came, unless it names tools: then the response ends.
    """

    def __init__(self, policy: ToolPolicy, limit: int, room: Callable[[int], bool] = _any) -> None:
        self._policy = policy
        self._limit = limit
        self._room = room
        self._held = bytearray()
        self._large = False  # in the middle of an event that is too large to be held
        self._line_feed: bytes | None = None  # after `\r`: what a `\n` that still belongs to it becomes

    def feed(self, data: bytes) -> bytes:
        out = []
        if self._line_feed is not None and data:
            if data.startswith(b"\n"):
                out.append(self._line_feed)
                data = data[1:]
            self._line_feed = None
        searched = max(0, len(self._held) - 3)
        self._held += data
        while (end := _END_OF_EVENT.search(self._held, searched)) is not None:
            event = bytes(self._held[: end.end()])
            del self._held[: end.end()]
            if self._large:
                self._insist_on_no_tools(event)
            clean = event if self._large or not _MARK.search(event) else self._event(event)
            out.append(clean)
            if event.endswith(b"\r") and not self._held:
                self._line_feed = b"\n" if clean is event else b""
            self._large, searched = False, 0
        if self._large or len(self._held) > self._limit:
            self._insist_on_no_tools(self._held)
            kept = len(self._held) - _LONGEST_MARK + 1  # the mark, or the event's end, may be cut in two
            if kept > 0:
                out.append(bytes(self._held[:kept]))
                del self._held[:kept]
            self._large = True
        if not self._room(len(self._held)):
            raise UnreadableBodyError(_FULL)
        return b"".join(out)

    def _insist_on_no_tools(self, part: bytes | bytearray) -> None:
        """Inside of a JSON string the mark's quotes are escaped: what a tool answered does not hold it."""
        if _MARK.search(part):
            raise UnreadableBodyError(f"an event with a list of tools has more than {self._limit} bytes")

    def finish(self) -> bytes:
        return bytes(self._held)  # a client drops an event that has no end

    def _event(self, event: bytes) -> bytes:
        lines = _LINE.split(event.decode("utf-8", "replace").removeprefix("\ufeff"))
        data = [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]
        old = "\n".join(data).encode()
        new = _shortened(old, self._policy)
        if new == old:
            return event
        rest = [line for line in lines if line and not line.startswith("data:")]
        return "\n".join([*rest, f"data: {new.decode()}", "", ""]).encode()


def _shortened(text: bytes, policy: ToolPolicy) -> bytes:
    """`text` without the tools that may not be called; the very bytes when none is in it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    messages = value if isinstance(value, list) else [value]
    changed = [_shorten(message, policy) for message in messages]
    return json.dumps(value, ensure_ascii=False).encode() if any(changed) else text


def _shorten(message: Any, policy: ToolPolicy) -> bool:
    result = message.get("result") if isinstance(message, dict) else None
    if not isinstance(result, dict) or not isinstance(tools := result.get("tools"), list):
        return False
    kept = [tool for tool in tools if not isinstance(tool, dict) or policy.shows(tool.get("name"))]
    result["tools"] = kept
    return len(kept) != len(tools)
