"""`mcp:` of agent.yaml: MCP servers that the agent reaches through the proxy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from moat.config.check import Checker, Node, meant
from moat.dataclass import dataclass
from moat.regex import regex

_NAME = regex(r"[a-z0-9][a-z0-9_-]{0,62}")
_NAME_RULE = "a name of an MCP server: lower-case letters, digits, `_` and `-`, at most 63"
_GRANT = regex(r"(?:mcp|oauth):[A-Za-z0-9][A-Za-z0-9._-]{0,253}")
_HEADER = regex(r"[A-Za-z][A-Za-z0-9-]{0,63}")
# What the proxy and every client set themselves, or what frames a message.
_HEADERS_OF_HTTP = frozenset(
    {"host", "connection", "content-length", "content-type", "transfer-encoding", "accept", "te", "upgrade"}
)
_TOOL = regex(r"[A-Za-z0-9_./*?-]{1,128}")
_LOCAL = frozenset({"localhost", "127.0.0.1"})
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """A remote server, or one on this machine (`http://localhost:PORT/…`)."""

    name: str
    url: str
    grant: str | None = None  # whose credential its requests carry: `mcp:linear`, `oauth:notion`
    header: str | None = None  # lower case; None: `authorization`
    scheme: Literal["bearer", "raw"] | None = None  # None: `bearer` in `authorization`, else `raw`
    allow: tuple[str, ...] = ()  # tools (globs); empty: all that `deny` does not name
    deny: tuple[str, ...] = ()
    audit: bool = False  # tool calls are only recorded, never refused

    @property
    def host(self) -> str:
        return (urlsplit(self.url).hostname or "").rstrip(".")

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or _DEFAULT_PORTS[parts.scheme]

    @property
    def local(self) -> bool:
        """On this machine, over plain http: reached through `moat-host`, never with a credential."""
        return urlsplit(self.url).scheme == "http"

    @property
    def judged(self) -> bool:
        """Whether somebody wants to know, or to decide, which tools are called."""
        return bool(self.allow or self.deny or self.audit)


@dataclass(frozen=True, slots=True)
class WellKnown:
    """A server that its vendor runs for everybody."""

    url: str
    grant: str | None  # what it asks for


WELL_KNOWN: Mapping[str, WellKnown] = MappingProxyType(
    {
        "context7": WellKnown("https://mcp.context7.com/mcp", None),
        "github": WellKnown("https://api.githubcopilot.com/mcp/", "mcp:github"),
        "linear": WellKnown("https://mcp.linear.app/mcp", "oauth:linear"),
        "notion": WellKnown("https://mcp.notion.com/mcp", "oauth:notion"),
        "sentry": WellKnown("https://mcp.sentry.dev/mcp", "oauth:sentry"),
    }
)


def check_url(text: str) -> str:
    """Why `text` cannot be the URL of an MCP server, or ""."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return f"{text!r} is not a URL"
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        return f"{text!r} is not a URL in printable ASCII"
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        return f"{text!r} is not a URL, e.g. https://mcp.example.com/mcp"
    if parts.username is not None or parts.password is not None:
        return "the URL holds a user name or password; use auth.grant"
    if parts.fragment or port == 0:
        return f"{text!r} is not the URL of a server"
    local = parts.hostname in _LOCAL
    if parts.scheme == "http" and not local:
        return "only https:// is possible, and http://localhost:PORT for a server on this machine"
    if parts.scheme == "https" and local:
        return "a server on this machine is reached over http://localhost:PORT"
    return ""


class McpReader:
    """Reads the list. `names` tells where each server was named, for `claude.mcp` to be compared with."""

    def __init__(self, check: Checker) -> None:
        self._check = check
        self.names: dict[str, Node] = {}

    def read(self, node: Node) -> tuple[McpServer, ...]:
        found = []
        for item in self._check.items(node, "mcp", "[linear]"):
            server = self._shorthand(item) if item.id == "scalar" else self._server(item)
            if server is None:
                continue
            if server.name in self.names:
                self._check.wrong(item, f"two MCP servers are called {server.name!r}")
            self.names[server.name] = item
            found.append(server)
        return tuple(found)

    def _shorthand(self, node: Node) -> McpServer | None:
        name = self._check.text(node, "an entry of mcp")
        if name is None:
            return None
        known = WELL_KNOWN.get(name)
        if known is None:
            self._check.wrong(
                node,
                f"{name!r} is no well-known MCP server ({', '.join(WELL_KNOWN)}){meant(name, WELL_KNOWN)}; "
                "for another one write {name: …, url: https://…}",
            )
            return None
        return McpServer(name=name, url=known.url, grant=known.grant)

    def _server(self, node: Node) -> McpServer | None:
        known: dict[str, Callable[[Node], object]] = {
            "name": lambda value: self._check.matching(value, "name", _NAME, _NAME_RULE),
            "url": self._url,
            "auth": self._auth,
            "tools": self._tools,
        }
        refused = {"policy": "write tools: {allow, deny}"}
        found: dict[str, Any] = self._check.fields(node, "an entry of mcp", known, refused)
        if node.id != "mapping":
            return None
        written = {str(key.value) for key, _ in node.value}
        for key in ("name",):
            if key not in written:
                self._check.wrong(node, f"an entry of mcp needs {key!r}")
        if not isinstance(name := found.get("name"), str):
            return None
        shorthand = WELL_KNOWN.get(name)
        if "url" not in written and shorthand is None:
            self._check.wrong(node, f"the MCP server {name!r} needs 'url'")
        url = found.get("url") or ("url" not in written and shorthand and shorthand.url)
        if not isinstance(url, str):
            return None
        auth: dict[str, Any] = dict(found.get("auth") or {})
        if shorthand is not None and url == shorthand.url and "auth" not in written:
            auth = {"grant": shorthand.grant}
        server = McpServer(name=name, url=url, **auth, **(found.get("tools") or {}))
        if server.local and server.grant is not None:
            self._check.wrong(
                node,
                f"auth of {name!r}: a credential never goes over plain http, not even on this machine: "
                "whoever listens on the port first would get it; let the server read its own secret",
            )
        return server

    def _url(self, node: Node) -> str | None:
        text = self._check.text(node, "url")
        if text is not None and (problem := check_url(text)):
            self._check.wrong(node, problem)
            return None
        return text

    def _auth(self, node: Node) -> dict[str, object] | None:
        known: dict[str, Callable[[Node], object]] = {
            "grant": lambda value: self._check.matching(
                value, "auth.grant", _GRANT, "a grant for an MCP server, e.g. mcp:linear or oauth:notion"
            ),
            "header": self._header,
            "scheme": lambda value: self._check.choice(value, "auth.scheme", ("bearer", "raw")),
        }
        found = self._check.fields(node, "auth", known, {})
        if node.id == "mapping" and "grant" not in {str(key.value) for key, _ in node.value}:
            self._check.wrong(node, "auth needs 'grant'")
        return found if "grant" in found else None

    def _header(self, node: Node) -> str | None:
        text = self._check.matching(
            node, "auth.header", _HEADER, "the name of a header, e.g. Authorization or X-API-Key"
        )
        if text is not None and text.lower() in _HEADERS_OF_HTTP:
            self._check.wrong(node, f"{text} cannot carry a credential")
            return None
        return text.lower() if text else None

    def _tools(self, node: Node) -> dict[str, object] | None:
        known: dict[str, Callable[[Node], object]] = {
            "allow": lambda value: self._patterns(value, "tools.allow"),
            "deny": lambda value: self._patterns(value, "tools.deny"),
            "mode": lambda value: self._check.choice(value, "tools.mode", ("enforce", "audit")),
        }
        found = self._check.fields(node, "tools", known, {})
        found["audit"] = found.pop("mode", "enforce") == "audit"
        return found

    def _patterns(self, node: Node, what: str) -> tuple[str, ...]:
        found = [
            self._check.matching(item, f"an entry of {what}", _TOOL, "the name of a tool, e.g. get_*")
            for item in self._check.items(node, what, "[get_*]")
        ]
        if node.id == "sequence" and not found:
            # An empty allow list would mean "nothing" to a reader of the file and "everything" to the code.
            self._check.wrong(node, f"{what} is empty; remove the key, or name tools")
        return tuple(name for name in found if name is not None)
