"""The `github` grant with git and gh themselves, in both runtimes, against a stand-in that only the real token opens."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.claude_world import RUNTIMES
from tests.e2e.clients import LEFT, SAY, assert_unseen, said
from tests.fakes.git_https import commit
from tests.fakes.github import HOSTS, LOGIN, OBJECTS, FakeGitHub
from tests.vault.vendor import Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "ghp_RealTokenOfTheTests0123456789abcdefgh"
# The headers that git hears go to a file, unredacted.
TRACE = "export GIT_TRACE_CURL=$PWD/heard GIT_TRACE_CURL_NO_DATA=1 GIT_TRACE_REDACT=0"
GIT = r"""
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
cd ..
"""
GH = r"""
say status gh auth status
say user gh api user
say missing gh api repos/acme/none
say view gh repo view acme/tools --json name,isPrivate
say setup gh auth setup-git
say gh-clone gh repo clone acme/tools again -- -q
cd again
git config user.name t; git config user.email t@example.test
git checkout -qb topic; git commit -q --allow-empty -m topic; git push -q origin topic
say create gh pr create --title 'A topic' --body b --head topic --base main
say list gh pr list --json number,title,headRefName
echo asset >asset
say upload gh release upload v1 asset
say download gh release download v1 -D got
say asset cat got/asset
say raw curl -sS https://raw.githubusercontent.com/acme/tools/main/one
say elsewhere gh api https://example.com/
cd ..
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
        login = home / ".config/gh/hosts.yml"
        login.parent.mkdir(parents=True)
        login.write_text(
            f"github.com:\n    user: {LOGIN}\n    oauth_token: {TOKEN}\n    git_protocol: https\n"
        )
        granted = moat("grant", "github", "--method", "gh")
        assert granted.returncode == 0, granted.stderr
        assert f"Authenticated as {LOGIN}." in granted.stdout
        yield fake, server


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_git_and_gh_do_their_work_and_hear_no_token(
    moat: Moat, github: tuple[FakeGitHub, Vendor], home: Path, tmp_path: Path, runtime: str
) -> None:
    """The stand-in shows what it was sent, in headers and texts.

    Seen to fail: when `to_scrub` gives nothing, git hears the token; with the scheme `bearer` nothing is cloned.
    """
    fake, server = github
    workspace = tmp_path / "workspace"
    gh, programs = shutil.which("gh"), tmp_path / "programs"
    assert gh, "gh is missing: run `bash .ci/test`"
    programs.mkdir()
    shutil.copy2(gh, programs)  # it is not in the base image
    lines = [
        "dependencies: [curl, git, python]",
        "grants: [github]",
        "network: {policy: strict}",
        f"mounts: ['{programs}:/opt/bin:ro']",
    ]
    (workspace / "agent.yaml").write_text("\n".join(lines))
    done = moat("run", "--runtime", runtime, "--", "sh", "-c", SAY + TRACE + GIT + GH + LEFT, timeout=300)
    answers = said(done)
    check_git(answers, fake)
    check_gh(answers, fake)
    sent = {asked.host: set[str | None]() for asked in server.asked}
    for asked in server.asked:
        sent[asked.host].add(asked.headers.get("authorization"))
    bearer = f"Bearer {TOKEN}"
    assert sent == {host: {bearer} for host in HOSTS} | {"github.com": {fake.basic}, OBJECTS: {None}}
    assert any(
        asked.headers.get("transfer-encoding") == "chunked" for asked in server.asked
    )  # the large push
    assert "x-sent: basic ***" in (workspace / "heard").read_text(errors="replace").lower()
    assert b"GH_TOKEN=ghp_moat" in (workspace / "processes").read_bytes()
    assert_unseen([TOKEN], done, workspace, home)


def check_git(said: dict[str, str], fake: FakeGitHub) -> None:
    head = said["head"]
    assert said["read"] == "one is here part is here"
    assert [said[name] for name in ("clone", "push", "force", "fetch", "partial")] == [""] * 5
    assert head == fake.head("acme/tools", "main") == fake.head("acme/tools", "v1") == said["got"]
    assert f"{fake.head('acme/tools', 'old')} refs/heads/old" in said["remote"].replace("\t", " ")
    assert "(non-fast-forward)" in said["stale"]
    assert said["blob"] == "3000000"
    for name in ("url", "header", "helper", "anonymous"):
        assert said[name].split() == [head, "HEAD"], name
    assert "Repository not found. Sent: Basic ***" in said["unknown"]
    assert "Write access to repository not granted. Sent: Basic ***" in said["foreign"]
    assert fake.head("other/tools", "main") != head


def check_gh(said: dict[str, str], fake: FakeGitHub) -> None:
    # As gh before 2.40 has it.
    status = said["status"].replace(f"account {LOGIN}", f"as {LOGIN}").replace("'", "")
    assert f"Logged in to github.com as {LOGIN} (GH_TOKEN)" in status
    assert "Token scopes: gist, read:org, repo" in status
    assert json.loads(said["user"]) == {"login": LOGIN, "sent": "Bearer " + "*" * len(TOKEN)}
    assert "Not Found. Sent: Bearer ***" in said["missing"]
    assert json.loads(said["view"]) == {"name": "tools", "isPrivate": True}
    assert (said["setup"], said["gh-clone"], said["upload"], said["download"]) == ("", "", "", "")
    assert said["create"].endswith("https://github.com/acme/tools/pull/1")
    assert json.loads(said["list"]) == [{"number": 1, "title": "A topic", "headRefName": "topic"}]
    assert fake.head("acme/tools", "topic") != said["head"]
    assert said["asset"].encode() + b"\n" == fake.assets["asset"] == b"asset\n"
    assert said["raw"].startswith("raw for Bearer ***")
    assert "moat refused this request: example.com" in said["elsewhere"]
