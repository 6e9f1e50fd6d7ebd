"""The real Claude Code calls tools of real MCP servers: behind TLS with a secret, on this machine, inside.

How each defence was shown to fail: with `check_binding` left out the stranger's server gets the secret; with
`McpTable.at` returning None for `moat-host` the denied call reaches the local server; with `host_ports` given
every port of the plan the other server answers.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from moat.config import load
from moat.paths import Home
from moat.runtime.confirmed import confirm
from moat.runtime.demands import demands
from tests.conftest import REPOSITORY
from tests.e2e.claude_world import RUNTIMES, configure
from tests.e2e.mcp_world import HOST, URL, McpWorld, mcp_world, tool
from tests.fakes.mcp_server import McpService, mortal_server
from tests.fakes.oauth_server import AuthorizationServer, visit

pytestmark = pytest.mark.timeout(300)
runtimes = pytest.mark.parametrize("runtime", RUNTIMES)

SERVERS = f"""
mcp:
  - name: remote
    url: {URL}
    auth: {{grant: "mcp:example"}}
    tools: {{deny: [remove]}}
  - name: here
    url: http://localhost:{{local}}/mcp
    tools: {{allow: [add, wait]}}
claude:
  mcp:
    inside:
      command: python3
      args: [/workspace/server.py, --stdio]
      env: {{PYTHONPATH: /opt/site, COLOUR: blue}}
      cwd: /tmp
"""
OWN_HEADER = f"""
mcp:
  - name: remote
    url: {URL}
    auth: {{grant: "mcp:example", header: X-API-Key}}
  - {{name: here, url: "http://localhost:{{local}}/mcp", tools: {{allow: [add], mode: audit}}}}
"""
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


@pytest.fixture
def servers(world, tmp_path):
    with mcp_world(world, tmp_path / "mcp") as made:
        yield made


@pytest.fixture
def granted(servers: McpWorld) -> McpWorld:
    done = servers.world.moat("grant", "mcp", "example", "--url", URL, "--token-stdin", input=servers.secret)
    assert done.returncode == 0, done.stderr
    return servers


def call(name: str, **arguments: object) -> str:
    params = {"name": name, "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})


def probe(servers: McpWorld, runtime: str, plan: list[dict[str, object]]) -> list[dict[str, object]]:
    (servers.world.workspace / "plan.json").write_text(json.dumps(plan))
    done = servers.world.moat("run", "--runtime", runtime, "--", "python3", "/workspace/probe.py")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@runtimes
def test_claude_calls_tools_of_all_three_kinds_of_server(granted, runtime):
    granted.write(SERVERS, runtime=runtime)
    world = granted.world
    said = world.answer("-p", tool("mcp__remote__add", a=1, b=2), runtime=runtime)
    assert "the sum is 3" in said
    (seen,) = granted.remote.calls()
    assert (seen.headers["authorization"], seen.headers["host"]) == (f"Bearer {granted.secret}", HOST)
    assert [s.status for s in granted.remote.received if s.status == 401] == []
    assert [(r["server"], r["tool"]) for r in granted.journal("mcp.called")] == [("remote", "add")]
    said = world.answer("-p", tool("mcp__here__add", a=3, b=4), runtime=runtime)
    assert "the sum is 7" in said
    assert granted.local.calls()[0].headers["host"] == f"localhost:{granted.local.port}"
    for _ in range(3):  # on a busy machine the server starts too late for the first prompt
        said = world.answer("-p", tool("mcp__inside__whoami"), runtime=runtime)
        if "No such tool" not in said:
            break
    assert "in /tmp with blue" in said
    # What may not be called is not offered, and what Claude Code holds is a placeholder.
    shown = world.fake.messages()[-1].text
    assert "mcp__remote__add" in shown
    assert [name for name in ("mcp__remote__remove", "mcp__here__whoami") if name in shown] == []
    command = "FAKE_TOOL Bash " + json.dumps({"command": "cat ~/.claude.json; env"})
    held = world.answer("-p", command, runtime=runtime)
    assert "Bearer moat-placeholder-remote-not-a-real-token-" in held
    assert granted.secret not in held


@runtimes
def test_tools_are_judged_and_no_other_port_opens(granted, runtime):
    granted.write(SERVERS)
    port = granted.local.port
    with socket.create_server(("127.0.0.1", 0)) as other:
        answers = probe(granted, runtime, [
            {"url": URL, "body": call("remove", what="a"), "headers": JSON},
            {"url": f"{URL}/?x", "body": call("REMOVE", what="a"), "headers": JSON},
            {"url": f"http://moat-host:{port}/mcp", "body": call("remove", what="b"), "headers": JSON},
            {"url": f"http://moat-host:{port}/mcp", "body": "--x", "headers": {"Content-Type": "multipart/form-data"}},
            {"url": f"http://moat-host:{other.getsockname()[1]}/"},
            {"url": f"http://localhost:{port}/mcp"},
            {"url": f"http://127.0.0.1:{port}/mcp"},
            {"url": f"https://{HOST}/.well-known/oauth-protected-resource"},
            {"url": "https://auth.example.test/", "headers": {"X-Key": "moat"}},
        ])  # fmt: skip
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()  # nobody is there
    for answer, rule in zip(answers[:3], ("deny: remove", "deny: remove", "tools.allow"), strict=True):
        assert answer["status"] == 200
        assert rule in json.loads(answer["body"])["error"]["message"]
    assert [answer["headers"].get("X-Moat-Denied") for answer in answers[3:]] == [
        "mcp-body", "policy", None, None, "mcp-login", "policy",
    ]  # fmt: skip
    assert [answer["status"] for answer in answers[5:7]] == [0, 0]  # the sandbox's own loopback
    assert (granted.remote.removed, granted.local.removed) == ([], [])
    assert (granted.remote.received, granted.local.received) == ([], [])
    refused = granted.journal("mcp.refused")
    assert [(r["server"], r["tool"]) for r in refused] == [
        ("remote", "remove"),
        ("remote", "REMOVE"),
        ("here", "remove"),
    ]


@runtimes
def test_a_server_that_dies_in_the_middle_of_a_call_is_an_error_of_that_call(servers, runtime):
    with mortal_server(sys.executable, REPOSITORY) as port:
        servers.write(f"mcp:\n  - {{name: here, url: 'http://localhost:{port}/mcp'}}\n")
        said = servers.world.answer("-p", tool("mcp__here__die"), runtime=runtime)
    assert said.startswith("The tool said: ")
    assert "moat could not do this request" in said or "error" in said.lower()
    assert servers.world.runs()[0]["exit_code"] == 0


@runtimes
def test_a_key_goes_as_it_is_in_a_header_of_its_own_and_audit_only_tells(granted, runtime):
    """The key reaches its host in that header alone, and no other host, whatever header it is asked with."""
    granted.remote.header, granted.remote.secret = "x-api-key", granted.secret
    with (
        McpService(certificate=granted.directory / "server.pem", stateless=True) as stranger,
        McpService(stateless=True) as granted.local,
    ):
        detours = {
            f"{HOST}:443": f"127.0.0.1:{granted.remote.port}",
            "auth.example.test:443": f"127.0.0.1:{stranger.port}",
        }
        roots = (granted.directory / "ca.pem").read_bytes()
        configure(granted.world.home, granted.world.fake, roots=roots, detours=detours)
        granted.write(OWN_HEADER, policy="permissive")
        said = granted.world.answer("-p", tool("mcp__remote__add", a=1, b=2), runtime=runtime)
        assert "the sum is 3" in said
        answers = probe(granted, runtime, [
            {"url": f"http://moat-host:{granted.local.port}/mcp", "body": call("remove", what="it"), "headers": JSON},
            {"url": URL, "headers": {"X-Api-Key": "mine"}},
            {"url": "https://auth.example.test/mcp", "body": call("add", a=5, b=6), "headers": JSON},
            {"url": "https://auth.example.test/mcp", "body": call("add", a=7, b=8), "headers": JSON | {"X-API-Key": "x"}},
        ])  # fmt: skip
    removed, unknown, *strange = answers
    assert "removed it" in removed["body"]
    assert unknown["status"] not in {0, 401, 403}  # whatever was asked with, the server met its key
    assert ["sum is 11" in strange[0]["body"], "sum is 15" in strange[1]["body"]] == [True, True]
    assert [s for s in granted.remote.received if "authorization" in s.headers] == []
    assert {s.headers["x-api-key"] for s in granted.remote.received} == {granted.secret}
    assert [s.headers.get("x-api-key") for s in stranger.received] == [None, "x"]
    assert [s for s in (*stranger.received, *granted.local.received) if granted.secret in str(s)] == []
    assert granted.local.removed == ["it"]
    (told,) = [each for each in granted.journal("mcp.called") if each["server"] == "here"]
    assert (told["tool"], told["rule"]) == ("remove", "tools.allow (no entry matches)")
    assert granted.journal("mcp.refused") == []


@pytest.mark.embedded
def test_two_servers_on_one_host_have_the_same_tools(granted):
    entries = [
        f"{{name: {name}, url: 'https://{HOST}/{name}', tools: {{deny: [{name}]}}}}" for name in ("a", "b")
    ]
    granted.write(f"mcp: [{', '.join(entries)}]\n")
    done = granted.world.moat("run", "--runtime", "embedded", "--", "true")
    assert done.returncode == 2
    assert "moat: error: mcp: a and b are on one host and have different tools\n" in done.stderr


# --- grants ---------------------------------------------------------------------------------------------------


def test_a_missing_grant_is_told_with_the_command_that_makes_it(servers):
    servers.write(SERVERS)
    for argv in (("run", "--", "true"), ("claude", "-p", "x")):
        done = servers.world.moat(*argv)
        assert done.returncode == 3
        assert "moat: error: missing grant: mcp:example\n" in done.stderr
        assert f"moat: hint: run `moat grant mcp example --url {URL}`\n" in done.stderr
    assert servers.world.runs() == []


@pytest.mark.embedded
def test_a_workspace_cannot_send_a_credential_elsewhere(granted):
    """The file is a cloned repository's; the URL in it is not the one that the user has granted for."""
    granted.write('mcp:\n  - {name: x, url: "https://auth.example.test/mcp", auth: {grant: "mcp:example"}}\n')
    done = granted.world.moat("run", "--runtime", "embedded", "--", "true")
    assert done.returncode == 3
    assert (
        f"the credential mcp:example is bound to {HOST}, and the MCP server 'x' is at auth.example.test"
        in done.stderr
    )
    assert "moat: hint: " in done.stderr


@pytest.mark.embedded
def test_a_refused_credential_is_told_to_the_model_and_no_login_is_begun(granted):
    granted.remote.secret = "Bearer another"
    granted.write(SERVERS)
    said = probe(granted, "embedded", [{"url": URL, "body": call("add", a=1, b=2)}])
    assert said[0]["status"] == 403
    body = json.loads(said[0]["body"])
    assert body["reason"] == "mcp-login"
    assert f"moat grant mcp example --url {URL}" in body["hint"]
    granted.world.answer("-p", "hello", runtime="embedded")
    assert {s.path for s in granted.remote.received} == {"/mcp"}


# --- a server that demands OAuth ----------------------------------------------------------------------------


@runtimes
def test_a_server_that_demands_oauth_gets_it_from_the_host_alone(servers, runtime):
    """Before the grant no login is begun inside; after it the tool works, and the short-lived token is renewed."""
    world, leaf = servers.world, servers.directory / "server.pem"
    with AuthorizationServer(leaf, lifetime=2) as server:
        options = {"token_verifier": server, "auth": server.settings()}
        with McpService(certificate=leaf, options=options) as service:
            detours = {
                f"{HOST}:443": f"127.0.0.1:{service.port}",
                "auth.example.test:443": f"127.0.0.1:{server.port}",
            }
            ca = servers.directory / "ca.pem"
            configure(world.home, world.fake, roots=ca.read_bytes(), detours=detours)
            servers.write(f"mcp:\n  - {{name: remote, url: {URL}}}\n")
            said = world.answer("-p", tool("mcp__remote__add", a=1, b=2), runtime=runtime)
            assert "the sum" not in said
            assert {s.status for s in service.received} == {401}
            assert {s.path for s in service.received} == {"/mcp"}
            assert server.clients == {}

            log_in(world, server, ca)
            servers.write(f"mcp:\n  - {{name: remote, url: {URL}, auth: {{grant: 'oauth:example'}}}}\n")
            command = "cat ~/.claude.json; env; cat /proc/[0-9]*/environ | tr '\\0' '\\n'"
            held = world.answer("-p", "FAKE_TOOL Bash " + json.dumps({"command": command}), runtime=runtime)
            assert "moat-placeholder-remote-not-a-real-token-" in held
            assert "real-access" not in held
            assert "real-refresh" not in held
            assert "the sum is 7" in world.answer("-p", tool("mcp__remote__add", a=3, b=4), runtime=runtime)
            while server.renewals < 2:  # a quick machine has answered before the token's time was over
                assert "the sum is 7" in world.answer(
                    "-p", tool("mcp__remote__add", a=3, b=4), runtime=runtime
                )
            assert {r["outcome"] for r in servers.journal("login.renewed")} == {"renewed"}
            assert server.reused == 0

            server.end_login()
            time.sleep(server.lifetime)  # so long what Moat has is still good, and it goes on with it
            confirm(Home(world.home / ".moat"), world.workspace, demands(load(world.workspace), ()))
            done = world.claude("-p", tool("mcp__remote__add", a=3, b=4), runtime=runtime)
            assert "the sum" not in done.stdout
            told = f"the login oauth:example is not accepted any more: `moat grant oauth example --url {URL}`"
            assert done.stderr.splitlines() == [f"moat: warning: {told}"]  # once
            assert [r["outcome"] for r in servers.journal("login.renewed")] == ["lost"]
            trace = world.moat("trace", "--network").stdout
            assert "the login oauth:example is no longer accepted by its server" in trace


def log_in(world, server: AuthorizationServer, ca) -> None:
    words = [world.moat_bin, "grant", "oauth", "example", "--url", URL, "--no-browser"]
    with subprocess.Popen(words, env=world.environment, stdout=subprocess.PIPE, text=True) as process:
        address = ""
        while not address.startswith("  https://"):
            address = process.stdout.readline()
            assert address
        assert visit(address.strip(), port=server.port, ca=ca)[0] == 200
        assert process.wait(30) == 0
