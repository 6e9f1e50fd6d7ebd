"""What Claude Code gets from Moat, judged without starting it; with the real program: tests/e2e."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import time
from pathlib import Path

import pytest

from moat.cli import claude as cli
from moat.errors import StartError
from moat.grants import CredentialInfo, CredentialKind
from moat.paths import Home
from moat.runtime.agents.claude import BINARY, Claude
from moat.runtime.agents.claude_binary import find_claude
from moat.runtime.agents.claude_home import approved_key, home_files, settings, state
from moat.runtime.agents.claude_sessions import (
    SANDBOX_PROJECT,
    host_directory,
    session_of_run,
    sessions,
    shared_directory,
    slug,
)
from moat.runtime.agents.claude_settings import Carried
from moat.vault.providers import provider

ONE = "11111111-1111-4111-8111-111111111111"
TWO = "22222222-2222-4222-8222-222222222222"


def info(kind: str) -> CredentialInfo:
    return CredentialInfo("anthropic", CredentialKind(kind), ("api.anthropic.com",), dt.datetime.now(dt.UTC))


# --- the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claude", "argv"),
    [
        (Claude(), "claude --dangerously-skip-permissions"),
        (Claude(ask=True), "claude"),
        (Claude(resume=ONE, ask=True), f"claude --resume {ONE}"),
        (Claude(session=ONE, ask=True), f"claude --session-id {ONE}"),
        (Claude(prompt="-x", ask=True), "claude -p -- -x"),
        (Claude(initial="--help", ask=True), "claude -- --help"),
    ],
)
def test_argv(claude, argv):
    assert " ".join(claude.argv()) == argv


# --- directories of conversations ----------------------------------------------------------------------

LONG = "/tmp/c1/w/" + "a" * 90 + "/" + "b" * 90 + "/" + "ü\U0001d4b3" * 10


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/workspace", "-workspace"),
        ("/w/My Project_1.x", "-w-My-Project-1-x"),
        ("/w/ünï/日本", "-w--n----"),
        ("/" + "x" * 199, "-" + "x" * 199),
        # What Claude Code 2.1.330 made of it; `ü` is one UTF-16 unit and the script X is two.
        (LONG, "-tmp-c1-w-" + "a" * 90 + "-" + "b" * 90 + "-" * 9 + "-dgcexe"),
    ],
)
def test_slug(path, name):
    assert slug(path) == name


def test_the_sandbox_has_one_project():
    assert SANDBOX_PROJECT == "/home/agent/.claude/projects/-workspace"


def test_the_directory_is_made_private_and_follows_links(tmp_path):
    real = tmp_path / "real_dir"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    made = shared_directory(tmp_path / "home", tmp_path / "link")
    assert made == host_directory(tmp_path / "home", real)
    assert made.name.endswith("real-dir")
    assert made.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / ".claude").write_text("a file")
    with pytest.raises(StartError, match="conversations cannot be kept in"):
        shared_directory(tmp_path, tmp_path)


def test_sessions_are_files_with_uuids_and_nothing_else(tmp_path):
    directory = shared_directory(tmp_path, tmp_path)
    for number, name in enumerate((f"{ONE}.jsonl", f"{TWO}.jsonl", "notes.jsonl", f"{ONE}.json"), 1):
        (directory / name).touch()
        os.utime(directory / name, (number, number))
    (directory / f"{TWO.replace('2', '3')}.jsonl").symlink_to("/etc/passwd")
    (directory / f"{TWO.replace('2', '4')}.jsonl").mkdir()
    assert sessions(tmp_path, tmp_path) == [(TWO, 2.0), (ONE, 1.0)]
    assert sessions(tmp_path, tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    ("argv", "started", "ended", "expected"),
    [
        (("claude", "--session-id", ONE, "-p", "--", "x"), 0.0, 1.0, ONE),
        (("claude", "--resume", TWO), 0.0, 1.0, TWO),
        (("claude", "--session-id", ONE.replace("1", "9")), 0.0, 99.0, None),  # left before the first prompt
        (("claude", "--continue"), 15.0, None, TWO),
        (("claude", "--continue"), 5.0, 12.0, ONE),
        (("claude", "--continue"), 30.0, 40.0, None),
    ],
)
def test_which_conversation_a_run_had(argv, started, ended, expected):
    known = [(TWO, 20.0), (ONE, 10.0)]
    assert session_of_run(argv, known, started_at=started, ended_at=ended) == expected


# --- files in HOME --------------------------------------------------------------------------------------


def test_every_key_against_questions_is_there(tmp_path):
    found = state(tmp_path, info("api-key"))
    assert found["hasCompletedOnboarding"] is True
    assert found["hasSeenAutoDefaultNudge"] is True
    assert found["projects"]["/workspace"]["hasTrustDialogAccepted"] is True
    assert found["customApiKeyResponses"]["approved"] == [approved_key(info("api-key"))]
    assert "customApiKeyResponses" not in state(tmp_path, info("oauth"))
    assert settings({}, {}, ask=False) == {
        "tui": "default",
        "permissions": {"defaultMode": "bypassPermissions"},
        "skipDangerousModePermissionPrompt": True,
        "enableAllProjectMcpServers": True,
    }
    own = {"permissions": {"deny": ["Read(x)"], "defaultMode": "plan"}}
    found = settings(own, {"a@b": True}, ask=False)
    assert found["permissions"] == {"deny": ["Read(x)"], "defaultMode": "bypassPermissions"}
    assert found["enabledPlugins"] == {"a@b": True}
    assert settings({}, {}, ask=True) == {"tui": "default", "permissions": {"defaultMode": "default"}}


def test_the_approved_key_is_the_end_of_every_runs_placeholder():
    key = info("api-key")
    placeholders = [provider("anthropic").placeholder(key, token) for token in ("a" * 16, "Z9" * 12)]
    assert [text[-20:] for text in placeholders] == [approved_key(key)] * 2
    assert placeholders[0] != placeholders[1]


def test_named_keys_of_the_host_come_along_and_secrets_do_not(tmp_path):
    host = {
        "userID": "someone",
        "theme": "light",
        "hasCompletedOnboarding": False,
        "oauthAccount": {
            "emailAddress": "a@b.test",
            "accessToken": "x",
            "nested": [{"refresh_token": "x", "ok": 1}, "sk-ant-oat01-abcdefgh"],
        },
        "clientDataCache": {"note": "eyJhbGciOiJIUzI1NiIsInR5cCI6", "api_key": "x", "n": 1},
        "primaryApiKey": "sk-ant-api03-secret",
        "mcpServers": {"x": {"headers": {"Authorization": "Bearer y"}}},
        "projects": {"/home/someone/other": {"history": ["private"]}},
    }
    (tmp_path / ".claude.json").write_text(json.dumps(host))
    found = state(tmp_path, info("oauth"))
    assert found["userID"] == "someone"
    assert found["theme"] == "light"
    assert found["hasCompletedOnboarding"] is True
    assert found["oauthAccount"] == {"emailAddress": "a@b.test", "nested": [{"ok": 1}, None]}
    assert found["clientDataCache"] == {"n": 1}
    assert list(found["projects"]) == ["/workspace"]
    assert not {"primaryApiKey", "mcpServers"} & found.keys()
    assert "oauthAccount" not in state(tmp_path, info("api-key"))


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 100_000, '"' + "x" * 5_000_000 + '"'])
def test_a_broken_file_of_the_host_counts_as_empty(tmp_path, text):
    (tmp_path / ".claude.json").write_text(text)
    assert state(tmp_path, info("oauth"))["hasCompletedOnboarding"] is True


def test_the_files_are_private_json(tmp_path):
    files = home_files(tmp_path, info("api-key"), Carried(), {}, ask=False, servers={})
    assert [(file.path, file.mode) for file in files] == [
        (".claude.json", 0o600),
        (".claude/settings.json", 0o600),
    ]
    assert all(isinstance(json.loads(file.data), dict) for file in files)


# --- the setup of a run -----------------------------------------------------------------------------------


def program(path: Path, *, size: int = 30_000_000, start: bytes = b"\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)  # sparse
    path.chmod(0o755)
    return path


def test_the_embedded_runtime_gets_the_hosts_program_and_docker_an_image(tmp_path):
    native = program(tmp_path / "bin" / "claude")
    environ = {"PATH": str(native.parent), "DISABLE_TELEMETRY": "1", "ANTHROPIC_API_KEY": "sk-ant-x"}
    claude = Claude(home=tmp_path)
    embedded = claude.setup(workspace=tmp_path, credential=info("oauth"), runtime="embedded", environ=environ)
    docker = claude.setup(
        workspace=tmp_path, credential=info("oauth"), runtime="docker", environ={"PATH": ""}
    )
    assert [(m.target, m.read_only) for m in embedded.mounts] == [(SANDBOX_PROJECT, False), (BINARY, True)]
    assert embedded.dependencies == ()
    assert [m.target for m in docker.mounts] == [SANDBOX_PROJECT]
    assert docker.dependencies == ("claude-code", "git")
    assert embedded.env["DISABLE_TELEMETRY"] == "1"
    assert "DISABLE_TELEMETRY" not in docker.env
    assert "ANTHROPIC_API_KEY" not in embedded.env


def test_the_native_program_is_found_behind_what_is_on_path(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    scope = tmp_path / "lib" / "node_modules" / "@anthropic-ai"
    launcher = scope / "claude-code" / "bin" / "claude.exe"
    native = program(scope / "claude-code-linux-x64" / "claude")
    path = tmp_path / "path"
    path.mkdir()
    (path / "claude").symlink_to(launcher)
    environ = {"PATH": str(path)}
    # npm's postinstall has put the program itself there
    program(launcher)
    assert find_claude(tmp_path, environ) == launcher
    # with --ignore-scripts there is only a launcher
    launcher.write_text("#!/bin/sh\necho run the postinstall\n")
    assert find_claude(tmp_path, environ) == native
    # or the platform package lies inside
    nested = scope / "claude-code" / "node_modules" / "@anthropic-ai" / "claude-code-linux-x64" / "claude"
    native.unlink()
    program(nested)
    assert find_claude(tmp_path, environ) == nested


def test_the_native_installers_place_is_known_without_path(tmp_path):
    native = program(tmp_path / ".local" / "share" / "claude" / "versions" / "2.1.330")
    (tmp_path / ".local" / "bin").mkdir()
    (tmp_path / ".local" / "bin" / "claude").symlink_to(native)
    assert find_claude(tmp_path, {"PATH": "/nowhere"}) == native


def test_what_is_no_program_is_told_with_the_way_to_one(tmp_path):
    with pytest.raises(StartError, match="Claude Code is not installed on this machine") as missing:
        find_claude(tmp_path, {"PATH": str(tmp_path)})
    assert "npm install -g @anthropic-ai/claude-code" in str(missing.value.hint)
    for start, size in ((b"#!/bin/sh\n", 30_000_000), (b"\x7fELF", 4_000_000)):  # a wrapper, a shim
        place = program(tmp_path / "claude", start=start, size=size)
        with pytest.raises(StartError, match="is not the native Claude Code program") as wrong:
            find_claude(tmp_path, {"PATH": str(tmp_path)})
        assert str(place) in str(wrong.value)


def test_what_is_gone_on_with_is_the_newest_and_is_told(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Explicitly: Claude Code's own `--continue` would choose, and nobody knew which."""
    names = [f"00000000-0000-4000-8000-00000000000{number}" for number in "123"]
    for age, name in zip((300, 60, 7200), names, strict=True):
        path = shared_directory(home, tmp_path) / f"{name}.jsonl"
        path.write_text("{}\n")
        os.utime(path, (time.time() - age, time.time() - age))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    options = cli.parse([str(tmp_path)], "resume")
    with contextlib.ExitStack() as stack:
        _, claude = cli._conversation(options, Home.from_environment(), None, stack)
    assert claude.argv()[-2:] == ("--resume", names[1])
    assert f"moat: going on with conversation {names[1]}, 1m old" in capsys.readouterr().err
