"""`mcp:` and `claude.mcp:` of agent.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from moat.config import WELL_KNOWN, LocalMcpServer, McpServer, load
from moat.errors import ConfigError
from moat.runtime import codec
from moat.runtime.request import RunRequest


def read(directory: Path, text: str):
    (directory / "agent.yaml").write_text(text)
    return load(directory)


def test_every_key(tmp_path):
    found = read(tmp_path, """\
grants: [github, "mcp:internal"]
mcp:
  - linear
  - name: internal
    url: https://mcp.internal.test:8443/mcp?v=1
    auth: {grant: "mcp:internal", header: X-API-Key}
    tools: {allow: [get_*, search], deny: [get_secret], mode: audit}
  - name: raw
    url: https://raw.test/
    auth: {grant: "mcp:raw", scheme: raw}
  - {name: here, url: "http://localhost:8931/mcp"}
  - {name: context7, tools: {deny: ["*"]}}
claude:
  mcp:
    tools: {command: python3, args: [-m, server, 3], env: {LEVEL: 2}, cwd: /workspace/tools}
""")  # fmt: skip
    assert found.mcp == (
        McpServer(name="linear", url="https://mcp.linear.app/mcp", grant="oauth:linear"),
        McpServer(
            name="internal",
            url="https://mcp.internal.test:8443/mcp?v=1",
            grant="mcp:internal",
            header="x-api-key",
            allow=("get_*", "search"),
            deny=("get_secret",),
            audit=True,
        ),
        McpServer(name="raw", url="https://raw.test/", grant="mcp:raw", scheme="raw"),
        McpServer(name="here", url="http://localhost:8931/mcp"),
        McpServer(name="context7", url="https://mcp.context7.com/mcp", deny=("*",)),
    )
    assert [(s.host, s.port, s.local) for s in found.mcp[1:4]] == [
        ("mcp.internal.test", 8443, False),
        ("raw.test", 443, False),
        ("localhost", 8931, True),
    ]
    assert dict(found.claude.mcp) == {
        "tools": LocalMcpServer(
            command="python3", args=("-m", "server", "3"), env={"LEVEL": "2"}, cwd="/workspace/tools"
        )
    }
    assert found.needed_grants == ("github", "mcp:internal", "oauth:linear", "mcp:raw")
    request = RunRequest(argv=("x",), workspace=tmp_path, mcp=found.mcp)
    assert codec.decode(RunRequest, codec.encode(request)) == request


def test_well_known_servers_are_behind_tls():
    assert all(known.url.startswith("https://") for known in WELL_KNOWN.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mcp: linear", "1:6: mcp must be a list, e.g. [linear], not a string"),
        ("mcp: [lineer]", "1:7: 'lineer' is no well-known MCP server (context7, github, linear, notion, sentry); did you mean 'linear'?; for another one write {name: …, url: https://…}"),
        ("mcp: [{url: 'https://a.test/'}]", "1:7: an entry of mcp needs 'name'"),
        ("mcp: [{name: a}]", "1:7: the MCP server 'a' needs 'url'"),
        ("mcp: [{name: A, url: 'https://a.test/'}]", "1:14: 'A' is not a name of an MCP server: lower-case letters, digits, `_` and `-`, at most 63"),
        ("mcp: [linear, linear]", "1:15: two MCP servers are called 'linear'"),
        ("mcp: [{name: a, url: 'http://a.test/'}]", "1:22: only https:// is possible, and http://localhost:PORT for a server on this machine"),
        ("mcp: [{name: a, url: 'http://10.0.0.1/'}]", "1:22: only https:// is possible, and http://localhost:PORT for a server on this machine"),
        ("mcp: [{name: a, url: 'https://localhost:1/'}]", "1:22: a server on this machine is reached over http://localhost:PORT"),
        ("mcp: [{name: a, url: 'ftp://a.test/'}]", "1:22: 'ftp://a.test/' is not a URL, e.g. https://mcp.example.com/mcp"),
        ("mcp: [{name: a, url: 'https://u:p@a.test/'}]", "1:22: the URL holds a user name or password; use auth.grant"),
        ("mcp: [{name: a, url: 'https://a.test/#x'}]", "1:22: 'https://a.test/#x' is not the URL of a server"),
        ("mcp: [{name: a, url: 'https://a.test:99999/'}]", "1:22: 'https://a.test:99999/' is not a URL"),
        ("mcp: [{name: a, url: 'https://a.test/ x'}]", "1:22: 'https://a.test/ x' is not a URL in printable ASCII"),
        ("mcp: [{name: a, url: 'https://a.test/', auth: {header: X-Key}}]", "1:47: auth needs 'grant'"),
        ("mcp: [{name: a, url: 'https://a.test/', auth: {grant: github}}]", "1:55: 'github' is not a grant for an MCP server, e.g. mcp:linear or oauth:notion"),
        ("mcp: [{name: a, url: 'https://a.test/', auth: {grant: 'mcp:a', header: Host}}]", "1:72: Host cannot carry a credential"),
        ("mcp: [{name: a, url: 'https://a.test/', auth: {grant: 'mcp:a', header: 'X Y'}}]", "1:72: 'X Y' is not the name of a header, e.g. Authorization or X-API-Key"),
        (
            "mcp: [{name: a, url: 'http://localhost:1/', auth: {grant: 'mcp:a'}}]",
            "1:7: auth of 'a': a credential never goes over plain http, not even on this machine: whoever listens on the port first would get it; let the server read its own secret",
        ),
        ("mcp: [{name: a, url: 'https://a.test/', tools: {allow: []}}]", "1:56: tools.allow is empty; remove the key, or name tools"),
        ("mcp: [{name: a, url: 'https://a.test/', tools: {mode: log}}]", "1:55: tools.mode must be one of enforce, audit"),
        ("mcp: [{name: a, url: 'https://a.test/', tools: {deny: ['a b']}}]", "1:56: 'a b' is not the name of a tool, e.g. get_*"),
        ("mcp: [{name: a, url: 'https://a.test/', policy: x}]", "1:41: 'policy': write tools: {allow, deny}"),
        ("claude: {mcp: {a: {args: [x]}}}", "1:19: claude.mcp.a needs 'command'"),
        ("claude: {mcp: {a: {command: x, cwd: sub}}}", "1:37: claude.mcp.a.cwd must be a path of the sandbox, e.g. /workspace/tools"),
        ("claude: {mcp: {a: {command: x, env: {'A-B': c}}}}", "1:38: 'A-B' is not the name of an environment variable"),
        (
            "claude: {mcp: {a: {command: x, grant: github}}}",
            "1:32: 'grant': a program in the sandbox gets no credential; list the grant under `grants:`, and the proxy adds it to what the program sends",
        ),
        ("claude: {mcp: {linear: {command: x}}}\nmcp: [linear]", "2:7: 'linear' is an MCP server of claude.mcp as well"),
    ],
)  # fmt: skip
def test_one_mistake(tmp_path, text, expected):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.problems == (f"agent.yaml:{expected}",)
