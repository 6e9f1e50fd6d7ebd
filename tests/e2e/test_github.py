"""The `github` grant with the real git, in both runtimes, against repositories that only the real token opens."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.claude_world import RUNTIMES
from tests.fakes.git_https import commit
from tests.fakes.github import HOSTS, LOGIN, FakeGitHub
from tests.vault.conftest import traces
from tests.vault.vendor import Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "ghp_RealTokenOfTheTests0123456789abcdefgh"
# Everything that git hears goes to a file, unredacted; home and environment are left in the workspace.
GIT = r"""
export GIT_TRACE_CURL=$PWD/heard GIT_TRACE_REDACT=0
say() { echo "$1: $(shift; "$@" 2>&1 | tr '\n' ' ')"; }
say clone git clone -q --recurse-submodules https://github.com/acme/tools.git tools
cd tools
git config user.name t; git config user.email t@example.test
say read cat one lib/part
head -c 3000000 /dev/urandom >large; git add large; git commit -qm large; git tag v1
say push git push -q origin main v1
say force git push -q --force origin main~:refs/heads/old
say remote git ls-remote origin
say stale git push -q origin main~:main
say fetch git -C lib fetch -q --depth 1 https://github.com/acme/tools.git v1:got
say got git -C lib rev-parse got
say partial git clone -q --filter=blob:none --no-checkout https://github.com/acme/tools.git ../partial
say blob git -C ../partial cat-file -s main:large
say url git ls-remote "https://x-access-token:$GITHUB_TOKEN@github.com/acme/tools.git" HEAD
say header git -c "http.extraHeader=Authorization: Basic $(printf 'x:%s' "$GH_TOKEN" | base64 -w0)" ls-remote origin HEAD
say helper git -c 'credential.helper=!f() { echo username=x; echo password=$GH_TOKEN; }; f' ls-remote origin HEAD
say anonymous env -u GITHUB_TOKEN -u GH_TOKEN git ls-remote origin HEAD
say unknown git clone -q https://github.com/acme/none.git ../none
say foreign git push -q https://github.com/other/tools.git main
say head git rev-parse main
cd ..; cp -a ~ home; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline >processes 2>/dev/null; true
"""


@pytest.fixture
def github(
    moat: Moat, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FakeGitHub, Vendor]]:
    """Three repositories, one the other's submodule, and the grant for them."""
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(home / "key"))
    fake = FakeGitHub(tmp_path / "repositories", TOKEN)
    tools, part, other = (fake.make(name) for name in ("acme/tools", "acme/part", "other/tools"))
    for name, bare in {"part": part, "one": tools}.items():
        work = tmp_path / "authors" / name
        work.mkdir(parents=True)
        (work / name).write_text(f"{name} is here\n")
        commit(work, bare)
    add = ["-c", "protocol.file.allow=always", "submodule", "add", "-q", str(part), "lib"]
    author = tmp_path / "authors" / "one"
    subprocess.run(["git", "-C", str(author), *add], check=True, capture_output=True)
    modules = author / ".gitmodules"
    modules.write_text(modules.read_text().replace(str(part), "../part.git"))
    commit(author, tools)
    commit(author, other)
    with vendor(tmp_path / "vendor", fake, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        granted = moat("grant", "github", "--token-stdin", input=TOKEN + "\n")
        assert granted.returncode == 0, granted.stderr
        assert f"Authenticated as {LOGIN}." in granted.stdout
        yield fake, server


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_git_reads_and_writes_private_repositories_and_hears_no_token(
    moat: Moat, github: tuple[FakeGitHub, Vendor], home: Path, tmp_path: Path, runtime: str
) -> None:
    """The stand-in shows what it was sent, in headers and texts.

    Seen to fail: when `to_scrub` gives nothing, git hears the token; with the scheme `bearer` nothing is cloned.
    """
    fake, server = github
    workspace = tmp_path / "workspace"
    (workspace / "agent.yaml").write_text(
        "dependencies: [curl, git, python]\ngrants: [github]\nnetwork: {policy: strict}\n"
    )
    done = moat("run", "--runtime", runtime, "--", "sh", "-c", GIT, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    head = said["head"].strip()
    assert said["read"] == "one is here part is here "
    assert [said[name] for name in ("clone", "push", "force", "fetch", "partial")] == [""] * 5
    assert head == fake.head("acme/tools", "main") == fake.head("acme/tools", "v1") == said["got"].strip()
    assert f"{fake.head('acme/tools', 'old')} refs/heads/old" in said["remote"].replace("\t", " ")
    assert "(non-fast-forward)" in said["stale"]
    assert said["blob"].strip() == "3000000"
    for name in ("url", "header", "helper", "anonymous"):
        assert said[name].split() == [head, "HEAD"], name
    assert "Repository not found. Sent: Basic ***" in said["unknown"]
    assert "Write access to repository not granted. Sent: Basic ***" in said["foreign"]
    assert fake.head("other/tools", "main") != head
    to_git = [asked for asked in server.asked if asked.host == "github.com"]
    assert {asked.headers.get("authorization") for asked in to_git} == {fake.basic}
    assert any(asked.headers.get("transfer-encoding") == "chunked" for asked in to_git)  # the large push
    assert "x-sent: basic ***" in (workspace / "heard").read_text(errors="replace").lower()
    assert b"GH_TOKEN=ghp_moat" in (workspace / "processes").read_bytes()
    assert_unseen(done, workspace, *home.glob(".moat/runs/*"))


def assert_unseen(done: subprocess.CompletedProcess[str], *places: Path) -> None:
    assert TOKEN not in done.stdout + done.stderr
    assert traces(TOKEN, *places) == traces(f"x-access-token:{TOKEN}", *places) == []
