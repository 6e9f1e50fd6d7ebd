"""A repository that was just cloned names what is the user's: one question, before anything is lent.

Seen to fail: with `_agreed` true without asking, with `ask_first` at the end of `moat claude` (plugins are fetched first), without
`tcflush` (typed ahead), with `project_of` the path as it was given (spellings) or always the workspace's own (worktrees),
with mounts as the file spells them (a link that is changed meanwhile), without the profile, `safe`, the lock, or the look
at who could have written the answers.
"""

from __future__ import annotations

import http.server
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moat.cli.pages import pages
from moat.config import load
from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.runtime.confirmed import confirm, unconfirmed
from moat.runtime.demands import Demand, demands
from moat.vault import open_vault
from moat.vault.key import NewKey
from tests.cli.wizard import Start, Terminal
from tests.fakes.plugins import write_marketplace
from tests.git.kit import git, repository
from tests.vault.conftest import NOW

Moat = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.embedded, pytest.mark.usefixtures("embedded")]
HOSTS = {
    "linear": ("api.linear.app",),
    "vercel": ("api.vercel.com", "vercel.com"),
    "anthropic": ("api.anthropic.com",),
    "ssh:github.com": ("github.com",),
}
QUESTION = "Use them in this workspace? [Y/n]: "


@pytest.fixture(autouse=True)
def _stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user granted long ago, for something else."""
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    vault = open_vault(Home.from_environment(), new_key=lambda: NewKey(key_file=tmp_path / "key"))
    for name, hosts in HOSTS.items():
        vault.put(Credential(CredentialInfo(name, CredentialKind.TOKEN, hosts, NOW), Secret("of-the-user")))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    place = tmp_path / "clone"
    place.mkdir()
    (tmp_path / "notes").mkdir()
    write(place, "grants: [linear, ssh:github.com]\nnetwork: {host: [5432]}\nmounts: [../notes:/data:ro]\n")
    return place


def write(place: Path, text: str) -> None:
    (place / "agent.yaml").write_text(text)


def flat(rows: list[str]) -> str:
    """Without the spaces, and so without the place where a row ended."""
    return "".join("".join(rows).split())


def runs(moat: Moat) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(moat("list", "--json").stdout)
    return found


def kept() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((Home.from_environment().root / "workspaces.json").read_text())
    return found


@pytest.mark.parametrize("terminal", ["xterm-256color", "dumb"])
@pytest.mark.parametrize(("answer", "status"), [("n\r", 2), ("\x03", 130), ("\x04", 130)])
def test_what_was_not_allowed_does_not_start(
    start: Start, moat: Moat, clone: Path, terminal: str, answer: str, *, status: int
) -> None:
    asked = start("run", str(clone), "--", "true", size=(24, 80), TERM=terminal)
    asked.sees(QUESTION)
    rows = asked.shown().splitlines()
    assert rows[:2] == ["agent.yaml asks for what is yours:", "  grants        linear, ssh:github.com"]
    assert flat(rows[2:-2]) == f"mounts{clone.parent}/notes"
    assert rows[-2:] == ["  host ports    5432", QUESTION.rstrip()]
    asked.types(answer)
    asked.ends(status)
    if status == 2:
        assert "moat: error: nothing was started: agent.yaml asks for what you did not allow" in asked.shown()
        assert "moat: hint: take it out of agent.yaml" in asked.shown()
    assert runs(moat) == []
    assert not (Home.from_environment().root / "workspaces.json").exists()


def test_enter_says_yes_once_for_a_workspace_and_what_it_asks_for(
    start: Start, moat: Moat, clone: Path, tmp_path: Path
) -> None:
    write(clone, "grants: [linear]\nmounts: [../notes:/data:ro]\n")
    asked = start("run", str(clone), "--", "echo", "started")
    asked.sees(QUESTION)
    asked.types("\r")
    asked.sees("started")
    asked.ends()
    assert kept() == {str(clone): ["grant linear", f"mount {tmp_path}/notes"]}
    file = Home.from_environment().root / "workspaces.json"
    assert file.stat().st_mode & 0o777 == 0o600

    (tmp_path / "way").symlink_to(clone)
    for spelling in (clone, tmp_path / "way", tmp_path / "notes" / ".." / "clone"):
        again = start("run", str(spelling), "--", "echo", "started")
        again.sees("started")
        again.ends()
        assert b"yours" not in again.raw, "asked once, however the path is spelled"
    write(clone, "grants: [linear]\n")
    less = start("run", str(clone), "--", "true")
    less.ends()
    assert b"yours" not in less.raw

    write(clone, "grants: [linear, vercel]\nnetwork: {host: [5432, 5433]}\n")
    more = start("run", str(clone), "--", "true")
    more.sees(QUESTION)
    assert more.shown().splitlines()[:3] == [
        "agent.yaml asks for more that is yours:",
        "  grants        vercel",
        "  host ports    5432, 5433",
    ]
    more.types("n\r")
    more.ends(2)
    named = start("run", str(clone), "--grant", "vercel", "--", "true")
    named.sees(QUESTION)
    assert named.shown().splitlines()[1] == "  host ports    5432, 5433", "the user named the grant"
    named.types("y\r")
    named.ends()
    assert kept()[str(clone)] == ["grant linear", f"mount {tmp_path}/notes", "port 5432", "port 5433"]
    assert [len(run["grants"]) for run in runs(moat)] == [2, 1, 1, 1, 1, 1]
    background = start("run", "-d", str(clone), "--grant", "vercel", "--", "true")
    background.ends()
    assert b"yours" not in background.raw


def test_a_session_asks_before_it_does_anything_for_the_file(start: Start, moat: Moat, clone: Path) -> None:
    """Anthropic's grant is what `moat claude` is for; its credential would be missed right after the question."""
    write(clone, "grants: [claude, linear]\nclaude: {marketplaces: {m: {source: github, repo: a/b}}}\n")
    for command in (("claude", "-p", "hi"), ("claude", "-d"), ("run", "-d")):
        asked = start(*command, str(clone), *(("--", "true") if command[0] == "run" else ()))
        asked.sees(QUESTION)
        grants = "linear" if command[0] == "claude" else "anthropic, linear"
        assert asked.shown().splitlines()[1] == f"  grants        {grants}"
        asked.types("n\r")
        asked.ends(2)
    assert runs(moat) == []


MARKETS = """\
grants: [linear]
claude:
  plugins: {"x@nowhere": true}
  marketplaces: {tools: {source: directory, path: ../way}, here: {source: directory, path: in}}
"""


def test_a_marketplace_of_the_users_is_neither_copied_nor_fetched_unasked(
    start: Start, moat: Moat, clone: Path, tmp_path: Path, home: Path
) -> None:
    """Seen to fail: without marketplaces among the demands. A plugin that is nowhere ends the start after they came."""
    write(clone, MARKETS)
    for place in (tmp_path / "market", clone / "in", home / "private"):
        write_marketplace(place)
    (tmp_path / "way").symlink_to(tmp_path / "market")
    mine = {"source": {"source": "github", "repo": "company/private"}, "installLocation": f"{home}/private"}
    (home / ".claude" / "plugins").mkdir(parents=True)
    (home / ".claude" / "plugins" / "known_marketplaces.json").write_text(json.dumps({"mine": mine}))
    (clone / ".claude").mkdir()
    settings = clone / ".claude" / "settings.json"
    settings.write_text('{"enabledPlugins": {"hello@mine": true}}')
    trees = Home.from_environment().plugin_trees

    def answered(answer: str, status: int, *rows: str) -> int:
        asked = start("claude", "-d", str(clone))
        asked.sees(QUESTION)
        assert asked.shown().splitlines()[:-1] == list(rows)
        asked.types(answer)
        asked.ends(status)
        return len([*trees.glob("dir-*")])

    first = ("the workspace asks for what is yours:", "  grants        linear")
    market = f"{tmp_path}/market"
    assert answered("n\r", 2, *first, "  marketplaces  github company/private", " " * 16 + market) == 0
    settings.unlink()
    assert (
        answered("n\r", 2, "agent.yaml asks for what is yours:", first[1], f"  marketplaces  {market}") == 0
    )
    write(clone, "claude: {plugins: {'x@nowhere': true}}")
    settings.write_text('{"enabledPlugins": {"hello@mine": true}}')
    title = ".claude/settings.json asks for what is yours:"
    assert answered("y\r", 3, title, "  marketplaces  github company/private") == 1
    assert kept() == {str(clone): ["marketplace github company/private"]}
    write(clone, "claude: {plugins: {'hello@mine': true, 'x@nowhere': true}}")
    moat_claude = moat("claude", "-p", "hi", str(clone))
    assert "yours" not in moat_claude.stderr, "another file that asks for the same"
    ran = moat("run", "--runtime", "embedded", str(clone), "--", "true")
    assert (ran.returncode, ran.stderr) == (0, ""), "only Claude Code has plugins"


def test_what_was_confirmed_is_what_runs(start: Start, moat: Moat, clone: Path, tmp_path: Path) -> None:
    write(clone, "mounts: [link:/data:ro]\n")
    (tmp_path / "notes" / "it").write_text("meant")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "it").write_text("not meant")
    (clone / "link").symlink_to(tmp_path / "notes")
    asked = start("run", str(clone), "--", "cat", "/data/it")
    asked.sees(QUESTION)
    assert f"{tmp_path}/notes" in flat(asked.shown().splitlines()), "where the link leads"
    write(clone, "grants: [linear]\nmounts: [link:/data:ro]\n")
    (clone / "link").unlink()
    (clone / "link").symlink_to(tmp_path / "other")
    asked.types("\r")
    asked.ends()
    assert "meant" in asked.shown()
    assert "not meant" not in asked.shown()
    (run,) = runs(moat)
    assert run["grants"] == []
    changed = start("run", str(clone), "--", "true")
    changed.sees("agent.yaml asks for what is yours:", "linear", f"{tmp_path.name}", QUESTION)
    changed.types("n\r")
    changed.ends(2)


def test_what_was_typed_before_the_question_is_no_answer(start: Start, moat: Moat, clone: Path) -> None:
    asked = start("run", str(clone), "--", "true")
    asked.send("\r\r\r")
    asked.sees(QUESTION)
    time.sleep(1)
    assert asked.isalive()
    asked.types("n\r")
    asked.ends(2)
    assert runs(moat) == []


def test_where_nobody_can_be_asked_it_is_told(start: Start, moat: Moat, clone: Path) -> None:
    write(clone, "grants: [linear]\nnetwork: {host: [5432]}\n")
    told = (
        "moat: warning: agent.yaml asks for what is yours, and nobody has confirmed it: grants linear; "
        "host ports 5432\n"
    )
    done = moat("run", str(clone), "--", "echo", "started")
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", told)
    for quiet in ({"MOAT_NO_PROMPT": "1"}, {}):
        flags = () if quiet else ("--no-prompt",)
        unasked = start("run", str(clone), *flags, "--", "echo", "started", **quiet)
        unasked.sees("nobody has confirmed it", "started")
        unasked.ends()
    assert not (Home.from_environment().root / "workspaces.json").exists(), "going on is no answer"
    confirm(Home.from_environment(), clone, [Demand("grant", "linear"), Demand("port", "5432")])
    assert moat("run", str(clone), "--", "true").stderr == ""


def test_the_user_may_have_such_runs_refused(start: Start, moat: Moat, clone: Path, home: Path) -> None:
    write(clone, "grants: [linear]\n")
    settings = home / ".moat" / "config.yaml"
    settings.write_text("workspaces: {unconfirmed: refuse}\n")
    settings.chmod(0o600)
    done = moat("run", str(clone), "--", "true")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "moat: error: agent.yaml asks for what is yours, and nobody has confirmed it: grants linear\n"
        "moat: hint: review it; then run this once on a terminal and answer, or add --accept-config\n"
    )
    assert runs(moat) == []
    assert moat("run", str(clone), "--grant", "linear", "--", "true").returncode == 0, "named by the user"
    vouched = moat("run", str(clone), "--accept-config", "--", "true")
    assert (vouched.returncode, "warning: agent.yaml asks" in vouched.stderr) == (0, True)
    assert moat("run", str(clone), "--", "true").returncode == 2, "for one run"
    asked = start("run", str(clone), "--accept-config", "--", "true")
    asked.sees(QUESTION)
    asked.types("\r")
    asked.ends()
    assert moat("run", str(clone), "--", "true").returncode == 0
    settings.write_text("workspaces:\n  unconfirmed: refused\n")
    wrong = moat("run", str(clone), "--grant", "vercel", "--", "true")
    assert "config.yaml:2:16: workspaces.unconfirmed must be one of pass, refuse" in wrong.stderr


def test_worktrees_of_a_repository_are_asked_about_once(start: Start, tmp_path: Path) -> None:
    project = repository(tmp_path / "project")
    write(project, "network: {host: [5432]}\n")
    git("add", "agent.yaml", cwd=project)
    git("commit", "--quiet", "-m", "file", cwd=project)
    first = start("run", str(project), "--worktree", "one", "--", "true")
    first.sees(QUESTION)
    first.types("\r")
    first.ends()
    second = start("run", str(project), "--worktree", "two", "--", "true")
    second.ends()
    assert b"yours" not in second.raw
    assert list(kept()) == [str(project)]


@pytest.mark.parametrize(("answer", "status"), [("n\r", 2), ("\x03", 130)])
@pytest.mark.parametrize(
    "words", [("run", "--worktree", "b"), ("wt", "b"), ("claude", "-d", "--worktree", "b")]
)
def test_what_was_made_for_a_start_that_is_not_allowed_goes_again(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    answer: str,
    *,
    status: int,
) -> None:
    """Seen to fail: without the context in `moat wt`; with the branch deleted that was there before."""
    project = repository(tmp_path / "project")
    write(project, "command: ['true']\nnetwork: {host: [5432]}\n")
    git("add", "agent.yaml", cwd=project)
    git("commit", "--quiet", "-m", "file", cwd=project)
    monkeypatch.chdir(project)

    def declined(said: str, *, left: bool = False) -> tuple[bool, bool]:
        asked = start(*words)
        asked.sees(QUESTION)
        if left:
            (place,) = Home.from_environment().worktrees.glob("*/b")
            (place / "note").touch()
        asked.types(answer)
        asked.ends(status)
        assert said in " ".join(asked.shown().split())
        trees = git("worktree", "list", "--porcelain", cwd=project).count("worktree ")
        return trees == 2, "b" in git("branch", "--format=%(refname:short)", cwd=project).split()

    assert declined("and its branch again") == (False, False)
    git("branch", "b", cwd=project)
    assert declined("removed the worktree") == (False, True), "the branch was there"
    git("branch", "-D", "b", cwd=project)
    assert declined("stays:", left=True) == (True, True), "somebody has worked in it"
    assert declined(QUESTION.strip()) == (True, True), "it was there"


def test_an_answer_that_cannot_be_kept_counts_for_the_run(start: Start, clone: Path) -> None:
    write(clone, "network: {host: [5432]}\n")
    root = Home.from_environment().root
    (root / "workspaces.json").mkdir()
    for _ in range(2):
        asked = start("run", str(clone), "--", "echo", "started")
        asked.sees(QUESTION)
        asked.types("\r")
        asked.sees("warning: the next run asks again, the answer cannot be kept: Is a directory", "started")
        asked.ends()


def test_another_profile_has_other_credentials(
    start: Start, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(clone, "grants: [linear]\n")
    confirm(Home.from_environment(), clone, [Demand("grant", "linear")])
    monkeypatch.setenv("MOAT_PROFILE", "work")
    vault = open_vault(Home.from_environment(), new_key=lambda: NewKey(key_file=tmp_path / "key"))
    info = CredentialInfo("linear", CredentialKind.TOKEN, HOSTS["linear"], NOW)
    vault.put(Credential(info, Secret("of-the-company")))
    monkeypatch.delenv("MOAT_PROFILE")
    asked = start("run", "--profile", "work", str(clone), "--", "true")
    asked.sees("grants        linear (profile work)", QUESTION)
    asked.types("n\r")
    asked.ends(2)


def test_what_is_not_granted_is_missing_and_not_asked_about(start: Start, clone: Path) -> None:
    write(clone, "grants: [gitlab, linear]\n")
    asked = start("run", str(clone), "--", "true")
    asked.sees("grants        linear\r\n", QUESTION)
    asked.types("\r")
    asked.sees("missing grant: gitlab", "Grant now?")
    asked.types("n\r")
    asked.ends(3)
    assert kept() == {str(clone): ["grant linear"]}


def test_what_is_granted_now_is_lent_to_the_workspace(start: Start, clone: Path) -> None:
    """The grant of the file, and not that of the command line. Seen to fail: without `lend`, and with all grants."""
    write(clone, "grants: [pypi, linear]\n")
    tokens = {"PYPI_TOKEN": "pypi-AgEIcHlwaS5vcmc" + "x" * 60, "BRAVE_API_KEY": "b" * 20}
    asked = start("run", str(clone), "--grant", "brave-search", "--", "true", **tokens)
    asked.sees(QUESTION)
    asked.types("\r")
    asked.sees("Grant now?")
    asked.types("\r")
    asked.sees("Save it anyway?")  # it could not be checked: the vendor is out of reach
    asked.types("y\r")
    asked.ends()
    assert kept() == {str(clone): ["grant linear", "grant pypi"]}


def test_a_path_cannot_draw(start: Start, clone: Path, tmp_path: Path) -> None:
    odd = "no\u202et, es\u200b"
    (tmp_path / odd).mkdir()
    write(clone, f'mounts: ["../{odd}:/data:ro"]\n')
    asked = start("run", str(clone), "--", "true")
    asked.sees(QUESTION)
    assert "no\\x202et,es\\x200b" in flat(asked.shown().splitlines())
    asked.types("n\r")
    asked.ends(2)


# --- packages -------------------------------------------------------------------------------------


def test_a_private_package_is_not_fetched_unasked(
    start: Start, moat: Moat, clone: Path, registry: tuple[str, list[str]], home: Path
) -> None:
    """With the user's token, from a server that only this machine may reach. Seen to fail: without packages among the demands."""
    place, fetched = registry
    (home / ".npmrc").write_text(f"registry=http://{place}/\n//{place}/:_authToken=of-the-user\n")
    write(clone, "dependencies: ['npm:@company/private']\n")
    asked = start("run", str(clone), "--", "true")
    asked.sees(QUESTION)
    assert asked.shown().splitlines()[:-1] == [
        "agent.yaml asks for what is yours:",
        f"  package hosts {place}",
    ]
    asked.types("n\r")
    asked.ends(2)
    assert (fetched, runs(moat)) == ([], [])
    agreed = start("run", str(clone), "--", "true")
    agreed.sees(QUESTION)
    agreed.types("y\r")
    agreed.ends(3)
    assert fetched
    assert kept() == {str(clone): [f"packages {place}"]}


# --- images and their making ----------------------------------------------------------------------

MADE = """\
runtime: docker
base_image: {registry}/private:1
dependencies: [redis@7, postgres@17]
services: {{redis: {{image: "redis:1/x"}}, postgres: {{image: "postgres:17-bookworm"}}}}
hooks:
  post_build_root: |
    # comments say nothing
    apt-get   update
    {command}
  post_build: git config --global init.defaultBranch main
  pre_run: echo inside
"""


@pytest.fixture
def registry() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine's loopback, and the paths that somebody asked it for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.docker
def test_an_image_is_neither_fetched_nor_made_unasked(
    start: Start, moat: Moat, clone: Path, registry: tuple[str, list[str]]
) -> None:
    """The engine asks whatever server the file names, on loopback too. Seen to fail: without images among the demands."""
    place, fetched = registry
    write(clone, MADE.format(registry=place, command="true"))
    asked = start("run", str(clone), "--", "true", size=(24, 80))
    asked.sees(QUESTION)
    assert asked.shown().splitlines() == [
        "agent.yaml asks for what is yours:",
        "  image builds  post_build_root: apt-get update … (3 lines)",
        "                post_build: git config --global init.defaultBranch main",
        f"  images        {place}/private:1, redis:1/x for redis",
        QUESTION.rstrip(),
    ]
    asked.types("n\r")
    asked.ends(2)
    assert (fetched, runs(moat)) == ([], [])
    agreed = start("run", str(clone), "--", "true")
    agreed.sees(QUESTION)
    agreed.types("\r")
    agreed.sees("cannot be pulled")
    agreed.ends(3)
    assert any("private" in path for path in fetched)

    write(clone, MADE.format(registry=place, command="curl evil.test"))
    changed = start("run", str(clone), "--", "true")
    changed.sees(QUESTION)
    assert changed.shown().splitlines()[:-1] == [
        "agent.yaml asks for more that is yours:",
        "  image builds  post_build_root: apt-get update … (3 lines)",
    ], "the same beginning, and another script"
    changed.types("n\r")
    changed.ends(2)
    unasked = moat("run", str(clone), "--", "true")
    assert (
        "nobody has confirmed it: image builds post_build_root: apt-get update … (3 lines)\n"
        in unasked.stderr
    )


def test_where_no_image_is_made_nothing_is_asked(start: Start, clone: Path) -> None:
    write(clone, MADE.format(registry="localhost:1", command="true"))
    refused = start("run", "--runtime", "embedded", str(clone), "--", "true")
    refused.sees("the embedded runtime cannot give this run what it asks for")
    refused.ends(3)
    assert b"yours" not in refused.raw


def test_the_runtime_is_the_one_that_was_asked_for(
    start: Start, clone: Path, runtime_directory: Path
) -> None:
    """An engine that comes up while the question is on the screen. Seen to fail: without `_runtime`."""
    write(clone, "grants: [linear]\nhooks: {post_build_root: 'true'}\n")
    place = runtime_directory / "engine"
    asked = start("run", str(clone), "--", "true", DOCKER_HOST=f"unix://{place}", MOAT_RUNTIME="")
    asked.sees(QUESTION)
    assert "image builds" not in asked.shown()
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(place))
        engine.listen()
        asked.types("\r")
        asked.sees("the embedded runtime cannot give this run what it asks for")
        asked.ends(3)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("apt-get install -y jq\n", "apt-get install -y jq"),
        ("\n\n  a\t b  \n", "a b"),
        ("a\nb\n\nc", "a … (3 lines)"),
        ("# what it does\na", "a … (2 lines)"),
        ("x" * 60, "x" * 60),
        ("a" + " " * 200 + "; curl evil.test", "a ; curl evil.test"),
        ("x" * 61, "x" * 60 + " … (61 characters)"),
        ("\ud800", "\ud800"),
    ],
)
def test_a_script_is_told_by_its_beginning_and_its_length(script: str, told: str) -> None:
    build = Demand("build", "post_build", script=script)
    assert build.title == f"post_build: {told}"
    assert str(build) != str(Demand("build", "post_build", script=script + " "))
    assert str(build).isascii()


# --- long lists -----------------------------------------------------------------------------------


def flooded(clone: Path, *, mounts: int, ports: str) -> list[str]:
    """A file with many mounts; returns them as they are asked about."""
    names = [f"many-{number:03}" for number in range(mounts)]
    for name in names:
        (clone.parent / name).mkdir()
    listed = ", ".join(f"../{name}:/data/{name}:ro" for name in names)
    write(clone, f"grants: [linear]\nmounts: [{listed}]\nnetwork: {{host: [{ports}]}}\n")
    return [f"{clone.parent}/{name}" for name in names]


def pages_of(asked: Terminal) -> Iterator[list[str]]:
    """The rows from title to question of each page, all of which are on the screen. Goes on with Enter."""
    for number in itertools.count(1):
        asked.expect(
            [rf"Page {number} of \d+\. Go on\? \[Y/n\]: ", r"Use them all in this workspace\? \[y/N\]: "]
        )
        rows = asked.shown().splitlines()
        begin = max(n for n, row in enumerate(rows) if row.startswith("agent.yaml asks for what is yours:"))
        yield rows[begin:]
        if "Use them all" in "".join(rows):
            return
        asked.types("\r")


@pytest.mark.parametrize("size", [(24, 80), (12, 60), (6, 40)], ids=["usual", "small", "tiny"])
def test_a_long_list_is_asked_about_page_by_page(
    start: Start, moat: Moat, clone: Path, size: tuple[int, int]
) -> None:
    """Who floods it hides nothing. Seen to fail: with one page, whatever its length."""
    mounts = flooded(clone, mounts=25, ports=", ".join(str(port) for port in range(8001, 8201, 2)))
    asked = start("run", str(clone), "--", "true", size=size)
    seen = list(pages_of(asked))
    total = "1 grant, 25 mounts, 100 host ports"
    assert all(total in " ".join(rows) for rows in seen)
    text = flat([row[16:] if row.startswith("  ") else "" for rows in seen for row in rows])
    assert text == flat(["linear", *mounts, ",".join(str(port) for port in range(8001, 8201, 2))])
    for number, rows in enumerate(seen[:-1], 1):
        assert rows[-1] == f"Page {number} of {len(seen)}. Go on? [Y/n]:"
        assert next(row for row in rows if row.startswith("  ")).split()[0] in {"grants", "mounts", "host"}
    asked.types("\r")
    asked.ends(2)
    assert runs(moat) == [], "Enter says no to what did not fit on the screen"


def test_pages_are_left_at_any_of_them_and_agreed_to_at_the_last(
    start: Start, moat: Moat, clone: Path
) -> None:
    mounts = flooded(clone, mounts=60, ports="5432")
    left = start("run", str(clone), "--", "true", size=(24, 80))
    left.sees("Page 1 of ")
    left.send("\r\ry\r")  # before the question is drawn, or after: at most a page is gone on with
    left.sees("Page 2 of ")
    time.sleep(1)
    assert left.isalive()
    left.types("n\r")
    left.ends(2)
    assert runs(moat) == []
    agreed = start("run", str(clone), "--", "true", size=(24, 80))
    assert len(list(pages_of(agreed))) > 3
    agreed.types("y\r")
    agreed.ends()
    assert kept()[str(clone)] == ["grant linear", *(f"mount {mount}" for mount in mounts), "port 5432"]


def test_a_name_that_goes_on_looks_like_no_other() -> None:
    """Characters that are two columns wide count as that. Seen to fail: without the indent, and with one column each."""
    (shown,) = pages("title:", [("mounts", ["/" + "\u6f22" * 20, "/etc"], True)], columns=48, rows=24)
    assert shown == [
        "title:",
        "  mounts        /" + "\u6f22" * 15,
        " " * 18 + "\u6f22" * 5,
        " " * 16 + "/etc",
    ]


def test_consecutive_ports_are_told_as_a_range(start: Start, clone: Path) -> None:
    write(clone, f"network: {{host: [5433, 5432, 22, {', '.join(map(str, range(8000, 8200)))}]}}\n")
    asked = start("run", str(clone), "--", "true", size=(5, 60))
    asked.sees(QUESTION)
    assert asked.shown().splitlines()[:2] == [
        "agent.yaml asks for what is yours:",
        "  host ports    22, 5432, 5433, 8000-8199",
    ]
    asked.types("n\r")
    asked.ends(2)


def test_where_nobody_can_be_asked_ports_alone_are_cut_off(moat: Moat, clone: Path) -> None:
    mounts = flooded(clone, mounts=60, ports=", ".join(str(port) for port in range(8001, 8401, 2)))
    done = moat("run", str(clone), "--", "true")
    ports = ", ".join(str(port) for port in range(8001, 8023, 2))
    assert done.returncode == 0
    assert done.stderr.endswith(
        f"confirmed it: grants linear; mounts {', '.join(mounts)}; host ports {ports}, and 189 more in agent.yaml\n"
    )


def test_nobody_looks_through_a_list_without_end(start: Start, moat: Moat, clone: Path) -> None:
    mounts = flooded(clone, mounts=400, ports="")
    told = "asks for more of what is yours than anybody can look through: 1 grant, 400 mounts"
    done = moat("run", str(clone), "--accept-config", "--", "true")
    assert (done.returncode, done.stderr.count(told), done.stderr.count("moat: hint: take out")) == (2, 1, 1)
    asked = start("run", str(clone), "--", "true")
    asked.ends(2)
    assert told in " ".join(asked.shown().split())
    assert runs(moat) == []
    confirm(Home.from_environment(), clone, [Demand("mount", mounts[0])])
    assert "nobody has confirmed it: grants linear; mounts" in moat("run", str(clone), "--", "true").stderr


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff", b"[]", b'{"PLACE": "port 1"}', b'{"PLACE": [1, null]}', b"[" * 100_000, b'{"PLACE": {"port 1": 1}}'],
    ids=range(8),
)  # fmt: skip
def test_a_damaged_file_asks_again(tmp_path: Path, damage: bytes) -> None:
    home, port = Home.from_environment(), Demand("port", "1")
    file = home.root / "workspaces.json"
    file.write_bytes(damage.replace(b"PLACE", bytes(tmp_path)))
    file.chmod(0o600)
    assert unconfirmed(home, tmp_path, [port]) == (port,)
    confirm(home, tmp_path, [port])
    assert unconfirmed(home, tmp_path, [port]) == ()


def test_what_others_could_have_written_is_no_answer(tmp_path: Path) -> None:
    home, port = Home.from_environment(), Demand("port", "1")
    confirm(home, tmp_path, [port])
    file = home.root / "workspaces.json"
    for mode in (0o620, 0o602):
        file.chmod(mode)
        assert unconfirmed(home, tmp_path, [port]) == (port,)
    if os.geteuid() == 0:
        file.chmod(0o600)
        os.chown(file, 4711, 4711)
        assert unconfirmed(home, tmp_path, [port]) == (port,)


def test_two_at_once_lose_no_answer(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from moat.paths import Home; from moat.runtime.demands import Demand; "
        "from moat.runtime.confirmed import confirm\n"
        "for n in range(20): confirm(Home.from_environment(), Path('/w'), [Demand('port', sys.argv[1] + str(n))])"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in (1, 2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(kept()["/w"]) == 40


def test_a_run_that_asks_for_nothing_loads_nothing_for_it(clone: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from moat.cli import run; from pathlib import Path; from moat.paths import Home; "
        "from moat.cli.worktree import configuration; from argparse import Namespace\n"
        "place = Path(sys.argv[1]); options = Namespace(grant=[], accept_config=False)\n"
        "run.ask_first(options, Home.from_environment(), place, configuration(place)); print(*sys.modules)"
    )
    write(
        clone, "network: {policy: strict}\nports: {web: 3000}\nhooks: {pre_run: make}\ndependencies: [git]\n"
    )
    for place in (tmp_path / "notes", clone):
        done = subprocess.run([sys.executable, "-c", program, str(place)], capture_output=True, check=True)
        loaded = set(done.stdout.decode().split())
        assert not loaded & {
            "moat.cli.confirm",
            "moat.runtime.demands",
            "moat.vault",
            "prompt_toolkit",
        }


@pytest.mark.parametrize(
    "text",
    [
        "grants: [linear]",
        "network: {host: [1]}",
        "mounts: [../notes:/data:ro]",
        "mcp: [{name: x, url: 'http://localhost:1/'}]",
        "mcp: [{name: x, url: 'https://x.test/', auth: {grant: 'mcp:x'}}]",
        "dependencies: ['npm:@company/private']",
        "hooks: {post_build_root: 'true'}",
        "hooks: {post_build: 'true'}",
        "base_image: debian:12",
        "{dependencies: [redis], services: {redis: {image: acme/redis}}}",
        "{dependencies: [redis], services: {redis: {image: 'redis:80/redis'}}}",
    ],
)
def test_whatever_makes_a_demand_is_looked_at(clone: Path, home: Path, text: str) -> None:
    (home / ".npmrc").write_text("registry=https://npm.test/\n")
    write(clone, text)
    settings = load(clone)
    assert settings.demanding
    assert len(demands(settings, ())) == 1
    (clone / "inside").mkdir()
    write(
        clone,
        "mounts: [inside:/data]\nmcp: [{name: x, url: 'https://x.test/'}]\nbase_image: debian:bookworm-slim\n"
        "dependencies: [redis, node, codex-cli, ruff]\nservices: {redis: {image: 'redis:8-alpine@sha256:00'}}\n",
    )
    assert demands(load(clone), ()) == ()
