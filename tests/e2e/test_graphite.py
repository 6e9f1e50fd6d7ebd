"""The `graphite` grant with gt itself, which pushes with the `github` grant and submits with its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.clients import LEFT, SAY, assert_unseen, said
from tests.fakes.git_https import commit
from tests.fakes.github import HOSTS, FakeGitHub
from tests.fakes.graphite import HOST, FakeGraphite
from tests.vault.vendor import Answer, Asked, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
GITHUB, GRAPHITE = "ghp_RealTokenOfTheTests0123456789abcdefgh", "RealTokenOfGraphite0123456789abcdefghijk"
GT = r"""
gt() { command gt --no-interactive "$@"; }
git clone -q https://github.com/acme/tools.git; cd tools
git config user.name t; git config user.email t@example.test
say auth gt auth --debug
say init gt init --trunk main
echo one >one; git add one; say create gt create first -m 'The first'
echo two >two; git add two; say stack gt create second -m 'The second'
say submit gt submit --stack --no-edit --debug
say head git rev-parse second
cd ..
"""


@pytest.mark.embedded
def test_gt_submits_a_stack_and_hears_no_token(
    moat: Moat, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--debug` gt prints every answer; each shows what was sent. Seen to fail: when `to_scrub` gives nothing."""
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(home / "key"))
    program = REPOSITORY / ".cache/bin/gt"
    assert os.access(program, os.X_OK), f"gt is missing at {program}: run `bash .ci/test`"
    github, graphite = FakeGitHub(tmp_path / "repositories", GITHUB), FakeGraphite(GRAPHITE)
    author, workspace = tmp_path / "author", tmp_path / "workspace"
    author.mkdir()
    commit(author, github.make("acme/tools"))

    def answer(asked: Asked) -> Answer:
        return graphite(asked) if asked.host == HOST else github(asked)

    with vendor(tmp_path / "vendor", answer, *HOSTS, HOST) as server:
        server.config(home / ".moat", *HOSTS, HOST)
        for name, token in {"github": GITHUB, "gt": GRAPHITE}.items():
            granted = moat("grant", name, "--token-stdin", input=token + "\n")
            assert "Authenticated as octocat." in granted.stdout, granted.stderr
        lines = [
            "dependencies: [curl, git, python]",
            "grants: [github, graphite]",
            "network: {policy: strict}",
            f"mounts: ['{program.resolve().parent}:/opt/bin:ro']",
        ]
        (workspace / "agent.yaml").write_text("\n".join(lines))
        done = moat("run", "--runtime", "embedded", "--", "sh", "-c", SAY + GT + LEFT, timeout=300)
    answers = said(done)
    assert "Authenticated as: octocat" in answers["auth"]
    assert 'sent\\": \\"token ***' in answers["auth"]
    assert [(made["head"], made["base"]) for made in graphite.submitted] == [
        ("first", "main"),
        ("second", "first"),
    ]
    assert "https://app.graphite.com/github/pr/acme/tools/2" in answers["submit"]
    assert answers["head"] == github.head("acme/tools", "second") == graphite.submitted[1]["headSha"]
    assert_unseen([GITHUB, GRAPHITE], done, workspace, home)
