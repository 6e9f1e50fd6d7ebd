"""What the menu of `moat grant` says that this machine has: files and variables of other tools, and what is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moat.vault.found import hint
from moat.vault.providers import entries, entry

FILES = {
    "anthropic": (".claude/.credentials.json", '{"claudeAiOauth": {"accessToken": "sk-ant-oat01-x"}}', "{}"),
    "aws": (".aws/config", "[profile work]\nregion = eu-west-1\n", "# nothing\n"),
    "docker": (".docker/config.json", '{"auths": {"ghcr.io": {"auth": "dTpw"}}}', '{"auths": {}}'),
    "gemini": (".gemini/oauth_creds.json", '{"access_token": "a", "refresh_token": "r"}', "{}"),
    "github": (".config/gh/hosts.yml", "github.com:\n    user: octocat\n", "{}\n"),
    "graphite": (".config/graphite/auth", '{"authToken": "t"}', '{"authToken": null}'),
    "npm": (
        ".npmrc",
        "//registry.npmjs.org/:_authToken=npm_x\n",
        "//registry.npmjs.org/:_authToken=${UNSET_HERE}\n",
    ),
    "openai": (".codex/auth.json", '{"OPENAI_API_KEY": "sk-x"}', '{"OPENAI_API_KEY": null, "tokens": {}}'),
}


@pytest.fixture(autouse=True)
def bare(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell and a home that have nothing."""
    for name in os.environ:
        if (
            name.endswith(("_KEY", "_TOKEN", "_CONFIG", "_CONFIG_DIR", "_PROFILE", "_HOME"))
            and name != "MOAT_HOME"
        ):
            monkeypatch.delenv(name)


def test_a_bare_machine_has_nothing() -> None:
    assert {row.name: hint(row) for row in entries() if hint(row)} == {}


@pytest.mark.parametrize("name", FILES)
def test_a_login_of_another_tool(home: Path, name: str) -> None:
    """A tool that was used and is not logged in leaves its file, too. Nothing but its own row names it."""
    place, login, none = FILES[name]
    path = home / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(none)
    assert hint(entry(name)) == ""
    path.write_text(login)
    assert hint(entry(name)) == f"~/{place}"
    assert [row.name for row in entries() if hint(row)] == [name]
    path.write_bytes(b"\xff\x00{")
    assert hint(entry(name)) == ""
    path.unlink()
    path.mkdir()
    assert hint(entry(name)) == ""


@pytest.mark.parametrize(
    ("name", "variable", "file"),
    [
        ("anthropic", "CLAUDE_CONFIG_DIR", ".credentials.json"),
        ("docker", "DOCKER_CONFIG", "config.json"),
        ("github", "GH_CONFIG_DIR", "hosts.yml"),
    ],
)
def test_a_directory_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, file: str
) -> None:
    (tmp_path / file).write_text(FILES[name][1])
    monkeypatch.setenv(variable, str(tmp_path))
    assert hint(entry(name)) == str(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("anthropic", "ANTHROPIC_API_KEY"),
        ("anthropic", "CLAUDE_CODE_OAUTH_TOKEN"),
        ("aws", "AWS_PROFILE"),
        ("gemini", "GEMINI_API_KEY"),
        ("github", "GH_TOKEN"),
        ("github", "GITHUB_TOKEN"),
        ("linear", "LINEAR_API_KEY"),
        ("openai", "OPENAI_API_KEY"),
        ("sentry", "SENTRY_AUTH_TOKEN"),
    ],
)
def test_a_variable(monkeypatch: pytest.MonkeyPatch, name: str, variable: str) -> None:
    monkeypatch.setenv(variable, "")
    assert hint(entry(name)) == ""
    monkeypatch.setenv(variable, "a-secret-that-is-not-shown")
    assert hint(entry(name)) == variable
