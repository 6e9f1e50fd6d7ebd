"""`moat claude` at a terminal with the real Claude Code: no questions, answers, detach, attach, resume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cli.tmux import Tmux
from tests.e2e.claude_world import DIALOGS, KINDS, RUNTIMES, Terminal
from tests.runtime.survival_kit import until

pytestmark = pytest.mark.timeout(300)
runtimes = pytest.mark.parametrize("runtime", RUNTIMES)
READY = "shift+tab to cycle"  # in the footer below the prompt, in bypass mode
DETACH = "\x1fd"  # ctrl-/ d


@pytest.fixture
def terminal(world) -> Iterator[Callable[..., Terminal]]:
    """`terminal("claude", …)`: that moat command on a terminal; closed in the end."""
    opened: list[Terminal] = []

    def open_terminal(*argv: str) -> Terminal:
        opened.append(world.terminal(*argv))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


def leave(session: Terminal) -> int:
    session.type("/exit")
    return session.wait_end()


@runtimes
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_without_a_question_and_answers(world, terminal, runtime):
    session = terminal("claude", "--runtime", runtime)
    session.wait_for(READY)
    session.settle()
    assert [text for text in DIALOGS if text in session.text] == [], session.text
    plan = "API Usage Billing" if world.kind == "api-key" else "Claude Max"
    assert plan in session.text
    session.type("hello from a person")
    session.wait_for("You said: hello from a person (prompt 1)")
    assert leave(session) == 0
    assert [r.path for r in world.fake.received if r.status == 401] == []
    (run,) = world.runs()
    assert (run["state"], run["exit_code"], run["tty"], run["agent"]) == ("stopped", 0, True, "claude")


@runtimes
def test_an_initial_prompt_is_answered_and_a_tool_used_without_asking(world, terminal, runtime):
    session = terminal("claude", "--runtime", runtime, "--", "is", "testing", "important?")
    session.wait_for("You said: is testing important? (prompt 1)")
    session.type("yes")
    session.wait_for("You said: yes (prompt 2)")
    session.type(
        "FAKE_TOOL Write " + json.dumps({"file_path": "/workspace/made.txt", "content": "in a session"})
    )
    session.wait_for("The tool said:")
    made = world.workspace / "made.txt"
    assert (made.read_text(), made.stat().st_uid) == ("in a session", os.getuid())
    assert leave(session) == 0


@pytest.mark.embedded
def test_a_host_is_asked_about_below_the_agents_own_screen(world, terminal):
    """The line covers the agent's last row and nothing else, stays while it draws, and is gone after the answer."""
    session = terminal("claude", "--runtime", "embedded", "--ask", "--name", "asks")
    session.wait_for(READY)
    session.type(
        "FAKE_TOOL Bash " + json.dumps({"command": "curl -s https://new.test/; echo; echo all done"})
    )
    session.wait_for("moat: allow GET new.test/ | ctrl-/ a allow, n deny")
    session.settle(quiet=2.0, timeout=4.0)
    assert session.screen.display[-1].startswith(" moat: allow GET new.test/ ")
    assert session.text.count("moat: allow") == 1
    time.sleep(0.6)
    session.send("\x1fn")
    session.wait_for("all done")
    session.wait_for(READY)
    session.settle()
    assert "moat: allow" not in session.text
    assert "the user does not want this run to reach new.test" in "".join(session.text.split("\n"))
    assert leave(session) == 0


@runtimes
def test_noyolo_asks_before_a_tool_is_used(world, terminal, runtime):
    session = terminal("claude", "--noyolo", "--runtime", runtime)
    session.wait_for("? for shortcuts")
    session.settle()
    assert [text for text in DIALOGS if text in session.text] == [], session.text
    session.type('FAKE_TOOL Bash {"command":"echo hi > asked.txt"}')
    session.wait_for("Do you want to proceed?")
    session.settle()  # a question takes no answer in its first moment
    assert not (world.workspace / "asked.txt").exists()
    session.send("\r")
    session.wait_for("The tool said:")
    assert (world.workspace / "asked.txt").read_text() == "hi\n"
    assert leave(session) == 0


@runtimes
def test_a_detached_session_goes_on_and_is_redrawn(world, terminal, runtime):
    first = terminal("claude", "-n", "long-work", "--runtime", runtime)
    first.wait_for(READY)
    first.type("FAKE_SLOW 16")
    until(lambda: _being_answered(world))
    first.send(DETACH)
    assert first.wait_end() == 0
    assert _being_answered(world), "it ends while nobody looks"
    assert world.runs()[0]["state"] == "running"
    assert "long-work" in world.moat("list").stdout
    until(lambda: not _being_answered(world))
    second = terminal("attach", "long-work")
    second.wait_for("word16", timeout=20)
    second.wait_for(READY)
    assert "FAKE_SLOW 16" in second.text, second.text
    second.type("still there?")
    second.wait_for("You said: still there? (prompt 2)")
    assert leave(second) == 0
    assert world.runs()[0]["state"] == "stopped"


def _being_answered(world) -> bool:
    """Whether the slow answer is on its way; Claude Code draws it when it is whole, and asks for a title as well."""
    asked = [r for r in world.fake.messages() if "FAKE_SLOW" in r.text and json.loads(r.body).get("tools")]
    return any(request not in world.fake.answered for request in asked)


@runtimes
def test_a_background_session_is_joined_later(world, terminal, runtime):
    done = world.moat("claude", "-d", "--runtime", runtime, "-n", "behind", "--", "begin alone")
    assert done.returncode == 0, done.stderr
    (run,) = world.runs()
    assert done.stdout == run["id"] + "\n"
    session = terminal("attach", run["id"])
    session.wait_for("You said: begin alone (prompt 1)")
    assert [text for text in DIALOGS if text in session.text] == [], session.text
    assert leave(session) == 0


@runtimes
def test_a_session_is_resumed_in_a_new_sandbox(world, terminal, runtime):
    first = terminal("claude", "--runtime", runtime, "--", "remember me")
    first.wait_for("You said: remember me (prompt 1)")
    assert leave(first) == 0
    (run,) = world.runs()
    assert f"`moat resume {run['name']}` goes on" in " ".join(first.text.split())
    which = [run["name"]] if runtime == "docker" else []  # else the newest in this directory
    second = terminal("resume", *which, "--runtime", runtime)
    second.wait_for("going on with conversation")
    second.wait_for("remember me")
    second.wait_for(READY)
    second.type("do you?")
    second.wait_for("You said: do you? (prompt 2)")
    assert leave(second) == 0
    assert len(world.sessions()) == 1
    assert len({run["id"] for run in world.runs()}) == 2


@pytest.mark.embedded
def test_the_menu_over_a_session_in_tmux(world, runtime_directory):
    window = Tmux(runtime_directory / "tmux-claude")
    window.open(world.workspace, 100, 30)
    try:
        window.line(f"clear; {world.moat_bin} claude --runtime embedded -n work -- hello")
        window.until(lambda: "You said: hello" in window.text and READY in window.text, 60)
        before = window.settled(1.0)
        window.keys("C-_")
        window.shows("d  detach")
        window.keys("t")
        window.shows("https://api.anthropic.com/")
        window.keys("x", "Escape")
        window.hides("d  detach")
        assert window.settled(1.0) == before
        window.keys("/exit", pause=0.5)
        window.keys("Enter")
        window.prompts("host>")
    finally:
        window.close()


@pytest.mark.embedded
def test_an_external_import_in_claude_md_asks_nothing(world, terminal):
    """CLAUDE.md of a cloned repository may import files from outside, and .mcp.json may name servers."""
    (world.workspace / "CLAUDE.md").write_text("@/etc/hosts\n@~/notes.md\n")
    (world.workspace / ".mcp.json").write_text(
        json.dumps({"mcpServers": {"local": {"type": "stdio", "command": "true", "args": []}}})
    )
    session = terminal("claude", "--runtime", "embedded", "--", "hello")
    session.wait_for("You said: hello (prompt 1)")
    assert [text for text in DIALOGS if text in session.text] == [], session.text
    assert leave(session) == 0


@pytest.mark.embedded
def test_the_hosts_own_settings_come_along_without_secrets(world, terminal):
    (world.home / ".claude").mkdir(exist_ok=True)
    (world.home / ".claude.json").write_text(
        json.dumps(
            {"userID": "ab" * 32, "installMethod": "native", "primaryApiKey": world.secret, "numStartups": 7}
        )
    )
    (world.home / ".claude" / "settings.json").write_text(
        json.dumps({"theme": "light", "apiKeyHelper": "/bin/leak"})
    )
    session = terminal("claude", "--runtime", "embedded")
    session.wait_for(READY)
    session.settle()
    assert [text for text in DIALOGS if text in session.text] == [], session.text
    command = "cat ~/.claude.json ~/.claude/settings.json > /workspace/seen"
    session.type("FAKE_TOOL Bash " + json.dumps({"command": command}))
    session.wait_for("The tool said:")
    assert leave(session) == 0
    seen = (world.workspace / "seen").read_text()
    assert "ab" * 32 in seen
    assert '"theme": "light"' in seen
    assert world.secret not in seen
    assert "leak" not in seen
    assert "primaryApiKey" not in seen
