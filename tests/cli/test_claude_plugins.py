"""`moat claude plugins list|update` as a person and a program read it."""

from __future__ import annotations

import json

from tests.fakes.plugins import write_marketplace


def test_none_says_so_with_an_example(moat):
    done = moat("claude", "plugins", "list")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "none")
    assert '\n    "formatter@team-tools": true\n' in done.stderr


def test_every_plugin_with_its_state_and_its_source(moat, workspace, home):
    write_marketplace(workspace / "market")
    (workspace / "agent.yaml").write_text(
        'claude:\n  plugins: {"hello@tools": true, "x@nowhere": true}\n'
        "  marketplaces:\n    tools: {source: directory, path: market}\n"
        "    far: {source: github, repo: acme/far, ref: v1}\n"
    )
    (home / ".claude").mkdir()
    (home / ".claude/settings.json").write_text('{"enabledPlugins": {"old@tools": false}}')
    done = moat("claude", "plugins", "list", str(workspace))
    assert done.returncode == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line]
    assert lines == [
        f"Claude Code plugins in {workspace}",
        "PLUGIN SETTING STATE SOURCE",
        "hello@tools enabled ready, 1.2.3 config (agent.yaml)",
        "old@tools disabled - host (~/.claude/settings.json)",
        "x@nowhere enabled missing config (agent.yaml)",
        "MARKETPLACE PLACE STATE SOURCE",
        "far github acme/far at v1 not fetched config (agent.yaml)",
        f"tools directory {workspace}/market ready config (agent.yaml)",
    ]
    assert "moat: error: plugin x@nowhere (agent.yaml): no marketplace 'nowhere' is known" in done.stderr
    found = json.loads(moat("claude", "plugins", "list", "--json", str(workspace)).stdout)
    assert [plugin["state"] for plugin in found["plugins"]] == ["ready", "disabled", "missing"]
    assert [market["state"] for market in found["marketplaces"]] == ["not fetched", "ready"]
    assert found["problems"][0]["source"] == "config"


def test_update_ends_with_a_status(moat, workspace):
    (workspace / "agent.yaml").write_text('claude: {plugins: {"x@nowhere": true}}\n')
    assert moat("claude", "plugins", "update", str(workspace)).returncode == 1
    done = moat("claude", "plugins", "list", "absent")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "moat: error: no directory 'absent'")


def test_what_is_fetched_for_no_run_is_in_the_ledger(moat, workspace, home):
    """The fetch fails: a workspace may not make this machine ask itself. `list` fetches nothing."""
    (workspace / "agent.yaml").write_text(
        'claude:\n  plugins: {"x@far": true}\n'
        "  marketplaces:\n    far: {source: git, url: 'https://127.0.0.1:9/far.git'}\n"
    )

    def fetched() -> list[dict[str, str]]:
        lines = moat("audit", "--workspace", str(workspace), "--json").stdout.splitlines()
        return [e["data"] for e in map(json.loads, lines) if e["event"] == "plugin.fetched"]

    moat("claude", "plugins", "list", str(workspace))
    assert fetched() == []
    assert moat("claude", "plugins", "update", str(workspace)).returncode == 1
    (one,) = fetched()
    assert (one["what"], one["by"], one["workspace"]) == ("marketplace far", "config", str(workspace))
    assert (one["host"], one["commit"], bool(one["error"])) == ("127.0.0.1", "", True)
    assert moat("audit", "--workspace", str(workspace), "--verify").returncode == 0
    ledger = home / ".moat/journal/ledger.jsonl"
    ledger.rename(ledger.with_name("kept"))
    ledger.mkdir()  # nothing can be written there
    done = moat("claude", "plugins", "update", str(workspace))
    assert (done.returncode, "it is done, and could not be recorded" in done.stderr) == (3, True)
