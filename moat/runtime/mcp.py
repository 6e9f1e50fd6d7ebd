"""The MCP servers of a run: placeholders, rules and open hosts for the proxy, entries for Claude Code."""

from __future__ import annotations

import json
import secrets
import shlex
import string
from collections.abc import Iterable, Mapping
from typing import Any

from moat.authority import Authority, AuthorityError, parse_authority
from moat.config import McpServer
from moat.errors import ConfigError, GrantError
from moat.grants import CredentialInfo, InjectionRule
from moat.proxy.events import Denial
from moat.proxy.mcp import McpEndpoint, McpTable, ToolCall, ToolPolicy
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import HOST_NAME, HomeFile
from moat.runtime.witness import unrecorded
from moat.vault.providers import command

_TOKEN = string.ascii_letters + string.digits


class McpPart(Part):
    """The servers that `mcp:` of agent.yaml names."""

    name = "mcp"

    async def prepare(self, run: RunContext) -> Addition:
        """Raises ConfigError for servers that cannot stand side by side, GrantError."""
        servers = run.request.mcp
        places = {server.name: authority_of(server) for server in servers}
        _check_side_by_side(servers, places)
        token = "".join(secrets.choice(_TOKEN) for _ in range(16))
        headers: dict[str, dict[str, str]] = {}
        rules = []
        for server in servers:
            if server.grant is not None and run.vault is not None:
                check_binding(run.vault.info(server.grant), server)
                rule = _rule(server, places[server.name], token)
                rules.append(rule)
                prefix = "Bearer " if rule.scheme == "bearer" else ""
                headers[server.name] = {rule.header.title(): prefix + rule.placeholder}

        def told(call: ToolCall) -> Denial | None:
            if call.refused:
                run.journal.often("mcp.refused", server=call.server, tool=call.tool, rule=call.rule)
            else:
                run.journal.often("mcp.called", server=call.server, tool=call.tool, rule=call.rule)
            return unrecorded(run.journal)

        files: tuple[HomeFile, ...] = ()
        if run.request.agent == "claude":
            entries = {server.name: _entry(server, headers.get(server.name, {})) for server in servers}
            files = (with_servers(run.request.home_files, entries),)
        local = [server for server in servers if server.local]
        return Addition(
            home_files=files,
            rules=tuple(rules),
            hosts=tuple(str(places[server.name]) for server in servers if not server.local),
            host_ports=tuple(dict.fromkeys(server.port for server in local)),
            mcp=McpTable([_endpoint(server, places[server.name]) for server in servers], told),
        )


def authority_of(server: McpServer) -> Authority:
    """Where the sandbox reaches it. Raises ConfigError."""
    if server.local:
        return Authority(HOST_NAME, server.port)
    host = f"[{server.host}]" if ":" in server.host else server.host
    try:
        return parse_authority(f"{host}:{server.port}")
    except AuthorityError as error:
        raise ConfigError([f"mcp: {server.name}: {error}"]) from error


def bound_host(authority: Authority) -> str:
    """How a credential of a server names the place that it is bound to."""
    return authority.host_header("https")


def check_binding(info: CredentialInfo, server: McpServer) -> None:
    """A workspace may name a grant; where its credential goes, the user has said. Raises GrantError."""
    wanted = bound_host(authority_of(server))
    if wanted not in info.hosts:
        raise GrantError(
            f"the credential {info.name} is bound to {', '.join(info.hosts) or 'no host'}, "
            f"and the MCP server {server.name!r} is at {wanted}",
            hint=f"correct the URL in agent.yaml, or grant another credential for it: mcp:{server.name}",
        )


def granting(server: McpServer, kind: str = "oauth") -> str:
    """The command that makes the grant a server needs."""
    name = server.grant or f"{kind}:{server.name}"
    return f"{command(name)} --url {shlex.quote(server.url)}"


def with_servers(files: Iterable[HomeFile], entries: Mapping[str, Any]) -> HomeFile:
    """Claude Code's state file with these servers added to its own."""
    path = ".claude.json"
    before = next((file.data for file in files if file.path == path), b"{}")
    state = json.loads(before)
    state["mcpServers"] = {**state.get("mcpServers", {}), **entries}
    return HomeFile(path, json.dumps(state, indent=2, ensure_ascii=False).encode())


def _check_side_by_side(servers: tuple[McpServer, ...], places: Mapping[str, Authority]) -> None:
    """Tools are judged for a whole host: two policies for one would be a guess. Raises ConfigError."""
    seen: dict[tuple[str, int], McpServer] = {}
    for server in servers:
        place = places[server.name]
        key = (place.host, place.port if server.local else 0)
        other = seen.setdefault(key, server)
        if (other.allow, other.deny, other.audit) != (server.allow, server.deny, server.audit):
            raise ConfigError(
                [f"mcp: {other.name} and {server.name} are on one host and have different tools"],
                hint="tools are judged for a whole host; give both servers the same `tools`",
            )


def _rule(server: McpServer, place: Authority, token: str) -> InjectionRule:
    assert server.grant is not None
    header = server.header or "authorization"
    return InjectionRule(
        credential=server.grant,
        hosts=(place.host if ":" not in place.host else f"[{place.host}]",),
        header=header,
        scheme=server.scheme or ("bearer" if header == "authorization" else "raw"),
        placeholder=f"moat-placeholder-{server.name}-not-a-real-token-{token}",
        ports=(place.port,),
    )


def _endpoint(server: McpServer, place: Authority) -> McpEndpoint:
    policy = ToolPolicy(server.allow, server.deny, server.audit) if server.judged else None
    again = "" if server.grant else f", and adds auth: {{grant: oauth:{server.name}}} to it in agent.yaml"
    login = f"the user runs `{granting(server)}` on the host{again}, then starts a new run"
    if server.grant and server.grant.startswith("oauth:"):
        login = f"try once more, with a renewed login; if that fails too, {login}"
    if server.local:
        login = "a server on this machine has to do without a login"
    expects = f"{server.host}:{server.port}".encode() if server.local else b""
    return McpEndpoint(
        name=server.name, host=place.host, port=place.port, expects=expects, policy=policy, login=login
    )


def _entry(server: McpServer, headers: Mapping[str, str]) -> dict[str, Any]:
    url = server.url
    if server.local:
        scheme, _, rest = url.partition("://")
        slash = rest.find("/")
        url = f"{scheme}://{HOST_NAME}:{server.port}{rest[slash:] if slash >= 0 else '/'}"
    entry: dict[str, Any] = {"type": "http", "url": url}
    return entry | ({"headers": dict(headers)} if headers else {})
