"""`moat claude -p` with the real Claude Code: answers, tools, credentials, conversations."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.vault import open_vault
from tests.e2e.claude_world import KINDS, RUNTIMES
from tests.fakes.connect import connect_proxy
from tests.git.kit import repository as make_repository

pytestmark = pytest.mark.timeout(300)
runtimes = pytest.mark.parametrize("runtime", RUNTIMES)
kinds = pytest.mark.parametrize("kind", KINDS)

# Looks for a text in every environment, argument list and file of the sandbox, without holding it itself.
# The search is proven by what it does find: the placeholder, by its first half.
SEARCH = """\
printf '%s%s\\n' '{first}' '{second}' | grep -rlsaF -f - --exclude-dir=proc --exclude-dir=sys \
  /proc/[0-9]*/environ /proc/[0-9]*/cmdline /home /workspace /tmp /run /etc /var/tmp /dev/shm | sort -u
"""


def bash(command: str) -> str:
    return "FAKE_TOOL Bash " + json.dumps({"command": command})


# --- an answer ------------------------------------------------------------------------------------------


@runtimes
@kinds
def test_the_api_gets_the_credential_and_nothing_inside_holds_it(world, runtime):
    """Seen failing with the secret in the sandbox's environment (`-e`): the search finds it."""
    half = len(world.secret) // 2
    search = SEARCH.format(first=world.secret[:half], second=world.secret[half:])
    control = SEARCH.format(first="placeholder-not-", second="a-real-")
    done = world.claude("-p", bash(f"{search}echo searched\n{control}"), runtime=runtime)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith("The tool said: searched\n"), "found it"
    found = "environ" if world.kind == "api-key" else "/home/agent/.claude/.credentials.json"
    assert found in done.stdout, "the search itself finds nothing"
    received = world.fake.received
    assert [r.path for r in received if r.status == 401] == []
    assert [r.path for r in received if re.search(r"sk-ant-(api03|oat01)-moat-", r.text)] == []
    # Claude Code sent the placeholder: what reached the API can only be Moat's.
    assert world.fake.messages()
    assert [r.path for r in world.fake.messages() if world.secret not in r.text] == []


@runtimes
def test_prompts_of_every_kind_are_answered_on_stdout(world, runtime):
    prompt = "--help me; $(id) \"quoted\" 'single' ünï 日本\nsecond line"
    done = world.claude(f"--prompt={prompt}", runtime=runtime)
    assert (done.stdout, done.stderr, done.returncode) == (f"You said: {prompt} (prompt 1)\n", "", 0)


@runtimes
def test_piped_input_reaches_claude(world, runtime):
    assert "from the pipe" in world.answer("-p", "look at this", runtime=runtime, input="from the pipe")


@runtimes
def test_the_exit_status_is_claudes_own(world, runtime):
    world.fake.api_key = "sk-ant-api03-another"
    done = world.claude("-p", "hello", runtime=runtime)
    assert done.returncode == 1
    assert "does not know this credential" in done.stdout + done.stderr


# --- tools --------------------------------------------------------------------------------------------


@runtimes
def test_a_tool_writes_a_file_of_the_workspaces_owner(world, runtime):
    """For a workspace of root's: test_claude_tui.py."""
    owner = 1234 if os.getuid() == 0 else os.getuid()
    os.chown(world.workspace, owner, owner)
    write = "FAKE_TOOL Write " + json.dumps({"file_path": "/workspace/made.txt", "content": "by claude\n"})
    world.answer("-p", write, runtime=runtime)
    made = world.workspace / "made.txt"
    assert made.read_text() == "by claude\n"
    assert made.stat().st_uid == owner


# --- without a credential -----------------------------------------------------------------------------


def test_without_a_credential_both_ways_to_one_are_told(world):
    assert world.moat("revoke", "anthropic").returncode == 0
    done = world.claude("-p", "hello", runtime="embedded")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == (
        "moat: error: No Claude Code credentials found\n"
        "moat: hint: install Claude Code and log in, then run `moat grant anthropic`\n"
        'moat: hint: or use an API key: `export ANTHROPIC_API_KEY="sk-ant-..." && moat grant anthropic`\n'
    )
    assert world.runs() == []


def test_all_missing_grants_are_told_at_once(world):
    assert world.moat("revoke", "anthropic").returncode == 0
    done = world.claude("-p", "hello", "-g", "github", runtime="embedded")
    assert done.returncode == 3
    assert "No Claude Code credentials found" in done.stderr
    assert "missing grant: github" in done.stderr
    assert "moat grant github" in done.stderr


def test_an_expired_credential_is_told(world):
    now = dt.datetime.now(dt.UTC)
    info = CredentialInfo(
        "anthropic", CredentialKind.OAUTH, ("api.anthropic.com",), now, expires_at=now - dt.timedelta(hours=1)
    )
    open_vault(Home(world.home / ".moat")).put(Credential(info, Secret("sk-ant-oat01-old")))
    done = world.claude("-p", "hello", runtime="embedded")
    assert done.returncode == 3
    assert done.stderr == (
        "moat: error: Credential expired: anthropic\nmoat: hint: run `moat grant anthropic`\n"
    )


# --- conversations --------------------------------------------------------------------------------------


@runtimes
def test_a_conversation_goes_on_in_a_new_sandbox(world, runtime):
    world.answer("-p", "first", runtime=runtime)
    (session,) = world.sessions()
    assert world.answer("-c", "-p", "second", runtime=runtime) == "You said: second (prompt 2)"
    done = world.moat("resume", "--runtime", runtime, "-p", "third")
    assert done.stdout == "You said: third (prompt 3)\n", done.stderr
    assert world.answer("--resume", session, "-p", "fourth", runtime=runtime) == "You said: fourth (prompt 4)"
    assert world.sessions() == [session]
    assert len({run["id"] for run in world.runs()}) == 4


@pytest.mark.embedded
def test_a_run_is_resumed_by_its_name_and_its_id_from_anywhere(world, tmp_path):
    runtime = "embedded"  # finding a run has nothing to do with where it ran
    world.answer("-n", "feature-auth", "-p", "first", runtime=runtime)
    (run,) = world.runs()
    world.answer("-p", "another conversation", runtime=runtime)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number, name in enumerate(("feature-auth", run["id"], run["id"][:9]), 2):
        said = world.answer("--resume", name, "-p", "more", runtime=runtime, cwd=elsewhere)
        assert said == f"You said: more (prompt {number})"
    done = world.moat("resume", "feature-auth", "--runtime", runtime, "-p", "last", cwd=elsewhere)
    assert done.stdout == "You said: last (prompt 5)\n", done.stderr
    none = world.moat("resume", "no-such-run", "--runtime", runtime, "-p", "x", cwd=elsewhere)
    assert (none.returncode, "no run and no conversation 'no-such-run'" in none.stderr) == (2, True)


@pytest.mark.embedded
@pytest.mark.docker
def test_conversations_cross_runtimes(world):
    world.answer("-p", "first", runtime="embedded")
    assert world.answer("-c", "-p", "second", runtime="docker") == "You said: second (prompt 2)"
    assert world.answer("-c", "-p", "third", runtime="embedded") == "You said: third (prompt 3)"


@pytest.mark.embedded
@pytest.mark.parametrize("name", ["My Project_1.x", "ünï-日本-\U0001d4b3", "a" * 120 + "/" + "b" * 120])
def test_claude_on_the_host_continues_what_was_begun_in_a_sandbox(world, claude_binary, name):
    """The directory of conversations has the name that the real Claude Code gives it, long or odd."""
    place = world.workspace / name
    place.mkdir(parents=True)
    world.answer("-p", "in the sandbox", runtime="embedded", cwd=place)
    with connect_proxy((world.fake.host, world.fake.port)) as proxy:
        done = subprocess.run(
            [claude_binary, "-c", "-p", "on the host"],
            cwd=place,
            env={
                "HOME": str(world.home),
                "PATH": "/usr/bin:/bin",
                "HTTPS_PROXY": proxy,
                "NODE_EXTRA_CA_CERTS": str(world.fake.ca_file),
                "ANTHROPIC_API_KEY": world.secret,
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout == "You said: on the host (prompt 2)\n", done.stderr


@pytest.mark.parametrize(
    ("argv", "error", "status"),
    [
        (("-c", "-p", "x"), "no conversation to continue in ", 3),
        (("-r", "00000000-0000-4000-8000-000000000000", "-p", "x"), "no conversation 00000000-", 3),
        (("-r", "nobody", "-p", "x"), "no run and no conversation 'nobody'", 2),
        (("-c", "-r", "x", "-p", "x"), "--continue and --resume exclude each other", 2),
        (("-p", ""), "the prompt is empty", 2),
        (("-p", "x", "--", "y"), "-p and an initial prompt exclude each other", 2),
        ((), "a session needs a terminal", 2),
        (("nowhere", "-p", "x"), "nowhere is not a directory", 2),
        (("-e", "1", "-p", "x"), "1", 2),
    ],
)
def test_what_cannot_be_started_is_told_before_anything_is_made(world, argv, error, status):
    done = world.claude(*argv, runtime="embedded")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("moat: error: ")
    assert error in done.stderr
    assert "moat: hint: " in done.stderr
    assert world.runs() == []


@pytest.mark.embedded
def test_a_host_without_claude_is_told_how_to_get_it(world):
    world.environment["PATH"] = os.pathsep.join(
        part for part in world.environment["PATH"].split(os.pathsep) if not (Path(part) / "claude").exists()
    )
    done = world.claude("-p", "hello", runtime="embedded")
    assert done.returncode == 3
    assert "Claude Code is not installed on this machine" in done.stderr
    assert "npm install -g @anthropic-ai/claude-code" in done.stderr


# --- what agent.yaml and flags say ----------------------------------------------------------------------


@runtimes
def test_the_file_and_the_flags_reach_the_run(world, runtime):
    (world.workspace / "data").mkdir()
    (world.workspace / "data" / "note").write_text("mounted")
    (world.workspace / "agent.yaml").write_text(
        f"name: from-file\nruntime: {runtime}\nenv: {{COLOUR: blue, SIZE: 3}}\nmounts: [data:/data:ro]\n"
        "grants: [anthropic]\nnetwork: {policy: strict}\n"
    )
    command = 'echo "$COLOUR $SIZE $EXTRA $(cat /data/note)"; touch /data/new 2>/dev/null || echo fenced'
    done = world.moat("claude", "-e", "EXTRA=yes", "-e", "SIZE=4", "-p", bash(command))
    assert done.stdout == "The tool said: blue 4 yes mounted\nfenced\n", done.stderr
    (run,) = world.runs()
    assert (run["name"], run["agent"], run["grants"], run["runtime"]) == (
        *("from-file", "claude", ["anthropic"], runtime),
    )


@pytest.mark.embedded
def test_the_directory_is_the_workspace(world):
    other = world.workspace / "sub" / "project"
    other.mkdir(parents=True)
    world.answer("./sub/project", "-p", bash("pwd; echo x > here"), runtime="embedded")
    assert (other / "here").exists()


@pytest.mark.embedded
def test_conversations_belong_to_the_worktree(world):
    repository = world.workspace / "shop"
    make_repository(repository)
    first = world.moat("wt", "one", "--runtime", "embedded", "-p", "first", cwd=repository)
    assert first.stdout == "You said: first (prompt 1)\n", first.stderr
    other = world.moat("claude", "--worktree", "two", "--runtime", "embedded", "-p", "other", cwd=repository)
    assert other.stdout == "You said: other (prompt 1)\n", other.stderr
    more = world.moat("resume", "--worktree", "one", "--runtime", "embedded", "-p", "second", cwd=repository)
    assert more.stdout == "You said: second (prompt 2)\n", more.stderr
    none = world.moat("resume", "--runtime", "embedded", "-p", "third", cwd=repository)
    assert none.returncode == 3
    assert f"no conversation to continue in {repository}" in none.stderr
    assert {(run["name"], run["worktree"]) for run in world.runs()} == {
        ("shop-one", "one"),
        ("shop-two", "two"),
    }
