"""MCP servers that a run knows: which tools may be called there. Pure: bodies in, judgements out.

Whoever decides which tools an agent may call decides it here and not in the list that the agent is shown:
a tool that is not listed can still be called. So every body that goes to such a server is read as the most
lenient of its parsers would read it, and what two parsers could read in two ways is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from moat.dataclass import dataclass
from moat.proxy.answers import Answer, denied
from moat.proxy.events import Denial
from moat.proxy.fields import Headers
from moat.proxy.paths import AmbiguousPathError, readings
from moat.proxy.policy import HOST_NAME

_REFUSED = -32003  # JSON-RPC 2.0 leaves -32000 to -32099 to implementations; MCP's own are near -32000
_LONGEST_NAME = 256  # characters; the specification recommends 128
_BATCH = 100  # messages of one body: an answer to each names all that were refused
_BY_DESIGN = (
    "this is a decision of the person who started the run, not a fault to work around: go on without this "
    "tool, or say that it is needed; to allow it, the user changes `tools` of this server in agent.yaml "
    "and starts a new run"
)
# Where a client would fetch a token of its own (RFC 9728, RFC 8414, and MCP's defaults without metadata).
_PROTECTED = "/.well-known/oauth-protected-resource"  # in use by MCP clients alone
_LOGIN_METADATA = (
    _PROTECTED,
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
)
_LOGIN_PATHS = frozenset({"/register", "/authorize", "/token"})
_MET = 256  # hosts; who fills this up in a sandbox loses what it does for him


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """Globs over names of tools. A deny wins, and also matches in other letter case."""

    allow: tuple[str, ...] = ()  # empty: all that `deny` does not name
    deny: tuple[str, ...] = ()
    audit: bool = False  # nothing is refused or hidden

    def denied_by(self, tool: str) -> str:
        """The rule that forbids `tool`, or ""."""
        folded = tool.casefold()
        for pattern in self.deny:
            if fnmatchcase(folded, pattern.casefold()):
                return f"tools.deny: {pattern}"
        if self.allow and not any(fnmatchcase(tool, pattern) for pattern in self.allow):
            return "tools.allow (no entry matches)"
        return ""

    def shows(self, tool: object) -> bool:
        """Whether a list of tools may show it."""
        return self.audit or not isinstance(tool, str) or not self.denied_by(tool)


@dataclass(frozen=True, slots=True, kw_only=True)
class McpEndpoint:
    """One server of the run's configuration. What is said of it holds for its whole host, on every path.

    A server answers under more paths and ports than the one that was configured.
    """

    name: str
    host: str  # canonical; HOST_NAME: on this machine
    port: int
    expects: bytes = b""  # the Host field that a server on this machine knows itself by
    policy: ToolPolicy | None = None
    login: str = ""  # what the user can do when the server wants to know who asks

    def readdressed(self, headers: Headers) -> Headers:
        """Headers as the server expects them. One on this machine refuses names that are not its own."""
        if not self.expects:
            return headers
        origin = b"http://%b:%d" % (HOST_NAME.encode(), self.port)
        kept = [
            (name, b"http://" + self.expects if name.lower() == b"origin" and value == origin else value)
            for name, value in headers
            if name.lower() != b"host"
        ]
        return ((b"Host", self.expects), *kept)

    def login_denial(self, target: str) -> Denial | None:
        """A client of the server that goes to fetch its own token must not get one into the sandbox."""
        try:
            paths = readings(target)
        except AmbiguousPathError:
            return None
        for path in paths:
            folded = path.casefold()  # as many servers have it
            if folded.startswith(_LOGIN_METADATA) or folded.rstrip("/") in _LOGIN_PATHS:
                return Denial(
                    code="mcp-login",
                    reason=f"logging in to the MCP server {self.name} from within the sandbox would leave "
                    "a real token there",
                    rule=f"mcp: {self.name}",
                    hint=self.login,
                )
        return None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a client asked for."""

    server: str
    tool: str  # "": the body could not be read (`rule` says why)
    rule: str  # what forbids it, or ""
    refused: bool


class McpTable:
    """The MCP servers of a run, by host."""

    def __init__(
        self,
        endpoints: Sequence[McpEndpoint] = (),
        on_call: Callable[[ToolCall], Denial | None] = lambda _: None,
    ) -> None:
        """`on_call` is told of a tool call to a server with a policy before it goes out, and may refuse it.

        It neither blocks nor raises.
        Nor does `on_rejected`, which may be replaced: a server did not accept the credential of this grant.
        """
        self._remote = {each.host: each for each in endpoints if each.host != HOST_NAME}
        self._local = {each.port: each for each in endpoints if each.host == HOST_NAME}
        self._met: dict[str, McpEndpoint] = {}  # not configured; known by what they offered
        self.on_call = on_call
        self.on_rejected: Callable[[str], object] = lambda _: None

    def at(self, host: str, port: int) -> McpEndpoint | None:
        """The server at an authority. A remote one is meant on whatever port."""
        if host == HOST_NAME:
            return self._local.get(port)
        return self._remote.get(host) or self._met.get(host)

    def asked(self, host: str, target: str) -> McpEndpoint | None:
        """A server that is not configured, when a client asks `host` where it could log in."""
        if "well-known" not in target.lower() and "%" not in target:
            return None  # nearly all requests
        try:
            login = any(path.casefold().startswith(_PROTECTED) for path in readings(target))
        except AmbiguousPathError:
            return None
        return self._meet(host) if login else None

    def challenged(self, host: str, headers: Headers) -> McpEndpoint | None:
        """The same, when the server answers 401 and says where to log in (RFC 9728)."""
        for name, value in headers:
            if name.lower() == b"www-authenticate" and b"resource_metadata" in value.lower():
                return self._meet(host)
        return None

    def _meet(self, host: str) -> McpEndpoint:
        """From here on `host` is an MCP server: its other pages for logging in are refused as well."""
        login = (
            f"the user names the server in agent.yaml (mcp: name, url, auth: {{grant: oauth:NAME}}), runs "
            f"`moat grant oauth NAME --url https://{host}/…` on the host, then starts a new run"
        )
        found = McpEndpoint(name=host, host=host, port=443, login=login)
        if len(self._met) < _MET:
            self._met[host] = found
        return found


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a request body asks an MCP server for."""

    calls: tuple[ToolCall, ...] = ()
    lists: bool = False  # a list of tools will come back
    answer: Answer | None = None  # refused


class _UnclearError(Exception):
    """Two parsers could read the body in two ways, or none can."""


def judge(endpoint: McpEndpoint, headers: Headers, body: bytes) -> Judgement:
    """Judge one body, JSON-RPC single or batch. Only for endpoints with a policy."""
    policy = endpoint.policy
    assert policy is not None
    try:
        messages = _messages(headers, body)
        calls = tuple(
            ToolCall(endpoint.name, tool, rule, refused=bool(rule) and not policy.audit)
            for tool in map(_called, messages)
            if tool is not None
            for rule in (policy.denied_by(tool),)
        )
    except _UnclearError as error:
        if policy.audit:
            return Judgement((ToolCall(endpoint.name, "", str(error), refused=False),))
        return Judgement(answer=unclear(endpoint, str(error)))
    lists = any(message.get("method") == "tools/list" for message in messages)
    refused = [call for call in calls if call.refused]
    return Judgement(calls, lists, _refusal(refused, body, messages) if refused else None)


def unclear(endpoint: McpEndpoint, why: str) -> Answer:
    """The answer to a body that cannot be judged."""
    return denied(
        Denial(
            code="mcp-body",
            reason=f"a request to the MCP server {endpoint.name} cannot be judged: {why}",
            rule=f"mcp: {endpoint.name} has a policy for its tools",
            hint="send one JSON-RPC message in plain UTF-8, each key once",
        )
    )


def _messages(headers: Headers, body: bytes) -> list[dict[str, Any]]:
    """The messages of a body. Raises _UnclearError."""
    for name, value in headers:
        if name.lower() == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise _UnclearError("it is compressed")
        if name.lower() == b"content-type" and b"charset" in value.lower():
            if value.lower().count(b"charset") > 1:
                raise _UnclearError("it is in two character sets")
            charset = value.lower().partition(b"charset")[2].strip(b" \t=\"'")
            if charset.partition(b";")[0].strip(b" \t\"'") not in {b"utf-8", b"utf8"}:
                raise _UnclearError("it is not in UTF-8")
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _UnclearError("it is not JSON") from None
    messages = value if isinstance(value, list) else [value]
    if len(messages) > _BATCH:
        raise _UnclearError(f"it has more than {_BATCH} messages")
    if not all(isinstance(message, dict) for message in messages):
        raise _UnclearError("it is no JSON-RPC message")
    return messages


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Some parsers take the first of two equal keys, some the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _UnclearError("a key is there twice")
    return found


def _no_constant(text: str) -> None:
    raise _UnclearError(f"{text} is not JSON")


def _called(message: dict[str, Any]) -> str | None:
    """The tool that a message calls. Raises _UnclearError for a call whose tool is not plain to see."""
    method = _plain(message, "method")
    if not isinstance(method, str) or method.casefold().strip() != "tools/call":
        return None
    params = _plain(message, "params")
    name = _plain(params, "name") if isinstance(params, dict) else None
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise _UnclearError("it calls a tool without a plain name")
    return name.strip()


def _plain(message: dict[str, Any], key: str) -> Any:
    """The value of `key`. Some parsers take `Method` for `method`, with a Kelvin sign for a `k` as well."""
    if any(name != key and name.casefold() == key for name in message):
        raise _UnclearError(f"{key!r} is spelled in another way")
    return message.get(key)


def _refusal(refused: list[ToolCall], body: bytes, messages: list[dict[str, Any]]) -> Answer:
    """JSON-RPC errors for all requests of the body: none of them was sent."""
    first = refused[0]
    reason = f"moat refused to call {first.tool!r} of the MCP server {first.server!r} ({first.rule})"
    error = {
        "code": _REFUSED,
        "message": f"{reason}; {_BY_DESIGN}",
        "data": {"reason": "mcp-tool", "rule": first.rule, "tools": [call.tool for call in refused]},
    }
    ids = [message["id"] for message in messages if "id" in message] or [None]
    answers: list[dict[str, Any]] = [{"jsonrpc": "2.0", "id": each, "error": error} for each in ids]
    value = answers if body.lstrip()[:1] == b"[" else answers[0]
    content = json.dumps(value, ensure_ascii=False).encode()
    headers = (
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(content)),
        (b"X-Moat-Denied", b"mcp-tool"),
        (b"Connection", b"close"),
    )
    denial = Denial("mcp-tool", reason, first.rule, _BY_DESIGN)
    # 200: the transport did its part; what a client shows to its model is the JSON-RPC error.
    return Answer(200, headers, content, denial)
