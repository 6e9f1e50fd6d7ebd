"""Plugins, settings and the note, with the real Claude Code: there at the first prompt of the first run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.claude_world import DIALOGS, RUNTIMES, World, configure
from tests.fakes.git_https import HOST, GitServer, commit
from tests.fakes.plugins import write_marketplace

pytestmark = pytest.mark.timeout(300)
runtimes = pytest.mark.parametrize("runtime", RUNTIMES)
READY = "shift+tab to cycle"


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[GitServer]:
    """A git server that Moat reaches as if it were public."""
    with GitServer(tmp_path / "served") as git:
        detours = {f"{HOST}:{git.port}": f"127.0.0.1:{git.port}"}
        configure(world.home, world.fake, roots=git.ca_file.read_bytes(), detours=detours)
        yield git


def publish(server: GitServer, work: Path, **options: str) -> str:
    write_marketplace(work, **options)
    bare = server.directory / "acme/tools.git"
    bare.parent.mkdir(parents=True, exist_ok=True)
    return commit(work, bare)


def name_in_config(world: World, server: GitServer, more: str = "") -> None:
    (world.workspace / "agent.yaml").write_text(
        f'claude:\n  plugins: {{"hello@tools": true}}\n  marketplaces:\n'
        f'    tools: {{source: git, url: "{server.url("acme/tools.git")}"}}\n{more}'
    )


@runtimes
def test_a_plugin_works_at_the_first_prompt_of_the_first_run(world, server, tmp_path, runtime):
    pinned = publish(server, tmp_path / "work")
    name_in_config(world, server, "network: {host: [5999]}\n")
    settings = world.home / ".claude/settings.json"
    settings.parent.mkdir()
    settings.write_text(
        '{"language": "klingon", "hooks": {"Stop": [{"hooks": [{"type": "command", "command": "touch host-hook"}]}]}}'
    )
    (world.home / ".claude/CLAUDE.md").write_text("MY-OWN-RULE\nkey sk-ant-api03-abcdefghijkl\n")

    assert world.answer("-p", "/hello:greet you", runtime=runtime) == "You said: GREETING ONE you (prompt 1)"

    told = (world.workspace / "hook.txt").read_text().splitlines()
    assert told == [
        "hook of ONE in /home/agent/.claude/plugins/cache/tools/hello/1.2.3",
        "its state is writable",
    ]
    asked = "".join(request.text for request in world.fake.messages())
    assert "# You are in a Moat sandbox" in asked
    assert "Any public host can be reached" in asked
    assert "moat-host:5999" in asked
    assert "MY-OWN-RULE" in asked
    assert "klingon" in asked
    assert "abcdefghijkl" not in asked
    assert not (world.workspace / "host-hook").exists()
    fetched = len(server.requests)
    (line,) = [text for text in world.moat("audit").stdout.splitlines() if "plugin.fetched" in text]
    assert pinned in line
    assert HOST in line

    # A second run, whose first prompt needs the plugin's MCP server; nothing is fetched again.
    publish(server, tmp_path / "work", word="TWO")
    tool = "FAKE_TOOL mcp__plugin_hello_echo__say {}"
    assert world.answer("-p", tool, runtime=runtime) == "The tool said: TOOL-OF-THE-PLUGIN"
    assert len(server.requests) == fetched

    listed = json.loads(world.moat("claude", "plugins", "list", "--json").stdout)
    (plugin,) = listed["plugins"]
    assert (plugin["id"], plugin["state"], plugin["commit"]) == ("hello@tools", "ready", pinned)
    assert len(server.requests) == fetched

    # `update` looks again where the branch is, and so does `--rebuild`, which in docker builds an image too.
    more = ("--rebuild",) if runtime == "embedded" else ()
    if not more:
        assert world.moat("claude", "plugins", "update").returncode == 0
    again = world.answer("-p", "/hello:greet you", *more, runtime=runtime)
    assert again == "You said: GREETING TWO you (prompt 1)"


def test_agent_yaml_wins_over_the_projects_own_settings(world, tmp_path):
    """The sandbox sees the project's settings, which switch the plugin on; agent.yaml has it off."""
    write_marketplace(world.workspace / "market")
    project = world.workspace / ".claude/settings.json"
    project.parent.mkdir()
    project.write_text(
        json.dumps(
            {
                "enabledPlugins": {"hello@tools": True},
                "extraKnownMarketplaces": {"tools": {"source": {"source": "directory", "path": "./market"}}},
            }
        )
    )
    assert (
        world.answer("-p", "/hello:greet you", runtime="embedded") == "You said: GREETING ONE you (prompt 1)"
    )
    (world.workspace / "agent.yaml").write_text('claude: {plugins: {"hello@tools": false}}\n')
    said = world.answer("-p", "/hello:greet you", "--accept-config", runtime="embedded")
    assert said == "You said: /hello:greet you (prompt 1)"


def test_a_session_has_the_hosts_plugin_status_line_and_chosen_hooks(world, tmp_path):
    """What the user has on this machine, at the terminal, without a question and without a fetch."""
    claude = world.home / ".claude"
    market = claude / "plugins/marketplaces/tools"
    write_marketplace(market)
    source = {"source": "github", "repo": "acme/tools"}
    known = {
        "tools": {"source": source, "installLocation": str(market), "lastUpdated": "2026-01-01T00:00:00.000Z"}
    }
    (claude / "plugins/known_marketplaces.json").write_text(json.dumps(known))
    (claude / "line.sh").write_text("#!/bin/sh\ncat >/dev/null; echo MY-STATUS-LINE in $HOME\n")
    hook = {"hooks": [{"type": "command", "command": "touch /workspace/host-hook"}]}
    lost = {"hooks": [{"type": "command", "command": f"{world.home}/bin/tool"}]}
    (claude / "settings.json").write_text(
        json.dumps(
            {
                "enabledPlugins": {"hello@tools": True, "gone@nowhere": True},
                "statusLine": {"type": "command", "command": f"sh {claude}/line.sh"},
                "hooks": {"SessionStart": [hook, lost]},
                "env": {"PRIVATE": "not-carried"},
            }
        )
    )
    config = world.home / ".moat/config.yaml"
    config.write_text(config.read_text() + "claude: {host_hooks: true}\n")

    session = world.terminal("claude", "--runtime", "embedded", "--", "/hello:greet you")
    try:
        session.wait_for("You said: GREETING ONE you (prompt 1)")
        session.wait_for("MY-STATUS-LINE in /home/agent")
        assert [text for text in DIALOGS if text in session.text] == [], session.text
        assert (world.workspace / "host-hook").exists()
        session.type("/exit")
        assert session.wait_end() == 0
    finally:
        session.close()
    assert "github.com" not in {request.host for request in world.fake.received}


def test_what_cannot_be_had_stops_the_session_with_the_reason(world, server):
    (world.workspace / "agent.yaml").write_text(
        f'claude:\n  plugins: {{"hello@tools": true, "x@nowhere": true}}\n  marketplaces:\n'
        f'    tools: {{source: git, url: "{server.url("acme/absent.git")}"}}\n'
    )
    done = world.claude("-p", "hi", runtime="embedded")
    assert (done.returncode, done.stdout) == (3, "")
    assert "moat: error: failed to fetch marketplace tools (git https://git.example.test:" in done.stderr
    assert "moat: error: plugin x@nowhere (agent.yaml): no marketplace 'nowhere' is known" in done.stderr
    assert f"moat: hint: if it is private: `moat grant ssh --host {HOST}`" in done.stderr
    assert world.runs() == []
    recorded = world.moat("audit", "--workspace", str(world.workspace)).stdout
    assert "plugin.fetched" in recorded
    assert "marketplace tools" in recorded


def test_without_sync_logs_nothing_is_kept_and_nothing_can_be_continued(world):
    (world.workspace / "agent.yaml").write_text("claude: {sync_logs: false}\n")
    assert world.answer("-p", "hi", runtime="embedded") == "You said: hi (prompt 1)"
    assert world.sessions() == []
    # A conversation that the host has is not shown either.
    (world.workspace / "agent.yaml").unlink()
    world.answer("-p", "kept", "--accept-config", runtime="embedded")
    (session,) = world.sessions()
    (world.workspace / "agent.yaml").write_text("claude: {sync_logs: false}\n")
    for flag in (("--continue",), ("--resume", session)):
        done = world.claude("-p", "hi", "--accept-config", *flag, runtime="embedded")
        assert done.returncode == 2
        assert "conversations are not kept and cannot be continued" in done.stderr


def test_a_run_cannot_have_the_next_one_fetch_something(world, server):
    """What an agent writes into the project's settings would leave this machine as a request.

    Seen failing without `before_fetch`: the server was asked for the path that the run had chosen.
    """
    source = {"source": {"source": "git", "url": server.url("acme/what-the-agent-knows.git")}}
    text = json.dumps({"extraKnownMarketplaces": {"tools": source}, "enabledPlugins": {"hello@tools": True}})
    script = f"mkdir .claude && printf %s '{text}' > .claude/settings.json"
    assert world.moat("run", "--runtime", "embedded", "--", "sh", "-c", script).returncode == 0
    done = world.claude("-p", "hi", runtime="embedded")
    assert done.returncode == 2, done.stderr
    assert ".claude/settings.json was changed while run" in done.stderr
    assert "add --accept-config" in done.stderr
    assert server.requests == []
    done = world.claude("-p", "hi", "--accept-config", runtime="embedded")
    assert "failed to fetch marketplace tools" in done.stderr
    assert server.requests != []
