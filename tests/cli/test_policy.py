"""`moat policy` as a user meets it; docs/policies.md is the straight way, and runs in the suite as well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_attach import Moat, workspace

__all__ = ["workspace"]
pytestmark = pytest.mark.embedded


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")


def test_learned_written_checked(moat: Moat, workspace: Path) -> None:
    file = workspace / "agent.yaml"
    file.write_text("# mine\nnetwork: {rules: [refused.test: ['deny * /**']]}\n")
    hosts = "https://a.test/x?token=1 http://b.test:8080/y https://refused.test/z http://169.254.169.254/"
    done = moat("run", "--name", "one", "--", "sh", "-c", f"for u in {hosts}; do curl -s $u; done")
    assert done.returncode == 0, done.stderr
    told = moat("policy", "learn", "one")
    assert told.stdout == 'network:\n  policy: strict\n  rules:\n    - "a.test:443"\n    - "b.test:8080"\n'
    assert "not in the list, the run was refused it: GET https://refused.test/z" in told.stderr
    assert "not looked at: 1 (SSH, addresses, budgets, broken HTTP)" in told.stderr
    assert "token" not in told.stdout + told.stderr
    learned = json.loads(moat("policy", "learn", "--json", "--rules").stdout)
    assert learned["rules"] == [
        {"host": "a.test:443", "rules": ["allow GET /x"]},
        {"host": "b.test:8080", "rules": ["allow GET /y"]},
    ]
    assert (learned["refused"], learned["incomplete"]) == (["GET https://refused.test/z"], False)

    moat("run", "-d", "--name", "alive", "--", "sleep", "60")
    refused = moat("policy", "learn", "one", "--write")
    assert (refused.returncode, "alive is alive in" in refused.stderr) == (2, True)
    assert "moat: hint: moat stop alive" in refused.stderr
    assert moat("stop", "alive").returncode == 0
    assert moat("policy", "learn", "one", "--write").returncode == 0
    assert file.read_text().startswith("# mine\nnetwork: {rules: [refused.test: ['deny * /**'], a.test:443")
    again = moat("run", "--", "true")
    assert again.returncode == 0, "what the user wrote with Moat needs no --accept-config: " + again.stderr
    same = moat("policy", "check", "--run", "one")
    assert (same.returncode, same.stdout) == (0, "nothing would change for the 3 requests of one\n")
    (workspace / "other.yaml").write_text("network: {policy: ask, rules: [refused.test]}\n")
    other = moat("policy", "check", "other.yaml", "--run", "one", "--json")
    assert other.returncode == 1
    assert [(c["url"], c["was"], c["now"]) for c in json.loads(other.stdout)["changes"]] == [
        ("https://a.test/x", "allow", "ask"),
        ("http://b.test:8080/y", "allow", "ask"),
        ("https://refused.test/z", "deny", "allow"),
    ]


def test_expectations_and_what_is_missing(moat: Moat, workspace: Path) -> None:
    (workspace / "agent.yaml").write_text("grants: [github]\nnetwork: {policy: strict}\n")
    tests = workspace / "agent.policy-tests.yaml"
    missing = moat("policy", "test")
    assert (missing.returncode, "there is no agent.policy-tests.yaml in ." in missing.stderr) == (2, True)
    tests.write_text("allow: [https://api.github.com/user]\ndeny: [https://example.com/]\n")
    assert moat("policy", "test").stdout == "2 of 2 as expected\n", (
        "grants open their hosts, without a credential"
    )
    tests.write_text("allow: [https://example.com/]\n")
    failed = moat("policy", "test", "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout) == [
        {
            "line": 1, "request": "https://example.com/", "expected": "allow", "outcome": "deny",
            "rule": "network.policy: strict", "met": False,
        }
    ]  # fmt: skip
    tests.write_text("allow: [example.com]\n")
    wrong = moat("policy", "test")
    assert (wrong.returncode, "agent.policy-tests.yaml:1:9: " in wrong.stderr) == (2, True)
    for words in (
        ("policy", "lern"),
        ("policy", "check", "nowhere.yaml", "--run", "x"),
        ("policy", "learn", "x"),
    ):
        assert moat(*words).returncode == 2
    assert "moat policy learn" in moat("policy").stdout
