"""What of the user's settings goes into a sandbox, and what the agent is told there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moat.config import HostRules, McpServer, NetworkConfig
from moat.errors import StartError
from moat.runtime.agents.claude_note import note
from moat.runtime.agents.claude_settings import Carried, carried, memory
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import Mount
from tests.git.kit import repository

KEY = "sk-ant-api03-abcdefghijkl"


@pytest.fixture
def user(tmp_path: Path) -> Path:
    place = tmp_path / "someone"
    (place / ".claude").mkdir(parents=True)
    return place


def take(user: Path, host: dict[str, Any], own: object = None, *, hooks: bool = False) -> Carried:
    (user / ".claude/settings.json").write_text(json.dumps(host))
    if own is not None:
        (user / "own.json").write_text(own if isinstance(own, str) else json.dumps(own))
    return carried(user, user / "own.json", host_hooks=hooks)


def line(command: str) -> dict[str, Any]:
    return {"statusLine": {"type": "command", "command": command, "padding": 0}}


def hook(command: str, event: str = "Stop") -> dict[str, Any]:
    return {"hooks": {event: [{"matcher": "x", "hooks": [{"type": "command", "command": command}]}]}}


def test_only_named_keys_of_the_host_come_along(user):
    host = {
        "language": "french",
        "env": {"A": "b"},
        "apiKeyHelper": "cat key",
        "permissions": {"allow": ["x"]},
    }
    found = take(user, host | {"attribution": {"commit": f"token {KEY}"}} | hook("true"))
    assert found.settings == {"language": "french"}
    assert (found.files, found.left_out) == ({}, [])


def test_a_status_line_brings_its_script(user):
    script = user / ".claude/line.sh"
    script.write_text("echo hi")
    script.chmod(0o755)
    for command in (f"bash {script}", "bash ~/.claude/line.sh", 'bash "$HOME/.claude/line.sh"'):
        found = take(user, line(command))
        assert "/home/agent/.claude/line.sh" in found.settings["statusLine"]["command"]
        (file,) = found.files.values()
        assert (file.path, file.data, file.mode) == (".claude/line.sh", b"echo hi", 0o700)
    assert take(user, line("echo plain")).settings["statusLine"]["command"] == "echo plain"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("~/bin/line", "~/bin/line is not in the sandbox"),
        ("cat ~/.claude/.credentials.json", "~/.claude/.credentials.json is not in the sandbox"),
        ("cat ~/.claude/projects/x/log", "~/.claude/projects/x/log is not in the sandbox"),
        ("sh ~/.claude/../.ssh/id", "~/.claude/../.ssh/id is not in the sandbox"),
        ("sh ~/.claude/link", "~/.claude/link is not in the sandbox"),
        ("sh ~/.claude/secretive.sh", "~/.claude/secretive.sh is not in the sandbox"),
        (f"curl -H 'x-api-key: {KEY}' x.test", "its command holds a secret"),
    ],
)
def test_a_command_that_needs_what_must_not_come_is_left_out(user, command, why):
    """Seen failing with `_script` without its checks: the credentials were a file of the sandbox."""
    (user / ".ssh").mkdir()
    (user / ".ssh/id").write_text("private")
    (user / ".claude/.credentials.json").write_text("private")
    (user / ".claude/projects/x").mkdir(parents=True)
    (user / ".claude/projects/x/log").write_text("private")
    (user / ".claude/link").symlink_to(user / ".ssh/id")
    (user / ".claude/secretive.sh").write_text(f"echo {KEY}")
    for host, hooks in ((line(command), False), (hook(command), True)):
        found = take(user, host, hooks=hooks)
        assert "statusLine" not in found.settings
        assert not found.settings.get("hooks")
        assert found.files == {}
        assert found.left_out[0].endswith(why)


def test_hooks_come_only_when_the_user_said_so(user):
    (user / ".claude/check.sh").write_text("true")
    host = hook("~/.claude/check.sh")
    assert "hooks" not in take(user, host).settings
    found = take(user, host, hooks=True)
    (group,) = found.settings["hooks"]["Stop"]
    assert group == {
        "matcher": "x",
        "hooks": [{"type": "command", "command": "/home/agent/.claude/check.sh"}],
    }
    assert list(found.files) == [".claude/check.sh"]


def test_the_users_own_file_is_taken_whole_and_wins(user):
    own = {"language": "german", "hooks": {"Stop": []}, "env": {"A": "b"}, "enabledPlugins": {"a@b": True}}
    found = take(user, {"language": "french", "theme": "dark"}, own)
    assert found.settings == {"theme": "dark", "language": "german", "hooks": {"Stop": []}, "env": {"A": "b"}}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"env": {"KEY": KEY}}, "~/.moat/claude/settings.json: env.KEY looks like a secret"),
        ({"hooks": [{"c": f"x {KEY}"}]}, "~/.moat/claude/settings.json: hooks.0.c looks like a secret"),
        ("{", "~/.moat/claude/settings.json: not valid JSON in line 1"),
        ("[]", "~/.moat/claude/settings.json: not a JSON object"),
    ],
)
def test_the_users_own_file_must_be_usable_and_without_secrets(user, own, said):
    with pytest.raises(StartError) as caught:
        take(user, {}, own)
    assert str(caught.value).startswith(said)
    assert KEY not in f"{caught.value} {caught.value.hint}"


def test_the_host_can_be_left_out(user):
    (user / ".claude/settings.json").write_text('{"language": "french"}')
    assert carried(user, user / "own.json", host_hooks=True, skip_host=True).settings == {}


def test_memory_comes_without_secrets(user):
    assert memory(user) == ""
    (user / ".claude/CLAUDE.md").write_text(f"be kind\nkey {KEY}\nuse tabs\n")
    assert memory(user).splitlines() == [
        "be kind",
        "(a line that looks like a secret is not shown in the sandbox)",
        "use tabs",
    ]


# --- the note -------------------------------------------------------------------------------------


def told(workspace: Path = Path("/w"), **options: Any) -> str:
    request = RunRequest(argv=("claude",), workspace=workspace, agent="claude", **options)
    return note(request, name="calm-otter", run_id="run_0123456789ab")


def test_the_note_claims_no_list_of_hosts_under_a_permissive_policy():
    rules = (HostRules("api.example.com", ("allow GET /a/**",)), HostRules("other.test"))
    text = told(network=NetworkConfig(rules=rules))
    assert "Any public host can be reached" in text
    assert "Only these hosts" not in text
    assert "Rules hold for api.example.com." in text
    assert "other.test" not in text
    assert "--allow-host" not in text
    assert "run_0123456789ab" in text
    assert "This run has no credentials." in text


def test_the_note_says_what_a_strict_policy_opens_and_what_is_there():
    text = told(
        network=NetworkConfig(policy="strict", rules=(HostRules("pypi.org"),), host=(5432,)),
        grants=("anthropic", "github"),
        mcp=(McpServer(name="linear", url="https://mcp.linear.app/mcp"),),
        ports={"web": 3000},
        mounts=(Mount(Path("/d"), "/data", read_only=True), Mount(Path("/p"), "/home/agent/.claude/x")),
    )
    assert "Only these hosts can be reached: pypi.org, those that your credentials belong to." in text
    assert "Any public host" not in text
    assert "Of the user's machine: moat-host:5432." in text
    assert "Credentials of this run: anthropic, github." in text
    assert "MCP servers through the proxy: linear" in text
    assert "Port 3000 is shown to the user as `web`" in text
    assert "Also there: /data (read-only)." in text
    assert "/home/agent" not in text
    assert "`X-Moat-Denied`" in text
    assert "--allow-host HOST" in text
    assert len(text) < 2500


def test_the_note_says_that_the_user_is_asked():
    text = told(network=NetworkConfig(policy="ask", rules=(HostRules("pypi.org"),)))
    assert (
        "another host is reached than pypi.org, those that your credentials belong to, the user is asked"
        in text
    )
    assert "`moat approve HOST`" in text
    assert "Any public host" not in text


def test_the_note_tells_who_has_an_ssh_grant_what_signs_and_what_does_not():
    """`tests/ssh` has the same seen: the `ssh` program logs in, a client of its own gets no signature."""
    text = told(grants=("ssh:github.com",))
    assert "Credentials of this run: ssh:github.com." in text
    assert "Log in by SSH with the `ssh` program, as git does" in text
    assert "Paramiko" in text
    assert "Permission denied (publickey)" in text
    assert "SSH" not in told(grants=("github",))


def test_the_note_tells_what_git_refuses_where_there_is_a_repository(tmp_path: Path):
    """`tests/git` has what is refused; an agent that is not told of it looks for a way around."""
    assert "git" not in told(tmp_path)
    place = repository(tmp_path / "project")
    assert "use `git config --global`" in told(place)
    assert "worktree" not in told(place)
    assert "git config" not in told(place, writable_git=True)
    text = told(place, worktree="fix")
    assert "This is a worktree of branch fix." in text
    for command in ("git branch -d", "git tag -d", "git bisect", "git gc", "git pack-refs"):
        assert f"`{command}`" in text
    assert "`Read-only file system`" in text


def test_the_note_names_services_by_what_reaches_them():
    text = told(dependencies=("postgres@17", "redis", "git"))
    assert "- Service postgres: address, user and password are in $MOAT_POSTGRES_URL" in text
    assert "$MOAT_REDIS_URL" in text
