"""`moat grant NAME --from …`, `--command …`: nothing secret is stored, and every run takes it from there.

Seen to fail: with `vault.put` in place of `vault.note` the secret is in a file; without `credentials.prepare` the run
begins although its credential cannot be had.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.journal.entry import entries
from tests.vault.conftest import traces
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
SECRET = "REAL-secret-kept-elsewhere-0123456789"
HOSTS = ("api.linear.app", "api.github.com", "api.anthropic.com")


def accept(asked: Asked) -> Answer:
    header = asked.headers.get("authorization", asked.headers.get("x-api-key", ""))
    return (200, {"login": "octo"}) if SECRET in header else (401, {})


@pytest.fixture
def vendors(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendor]:
    # No store could take a secret: there is no keyring, and nobody has chosen files.
    monkeypatch.delenv("MOAT_KEYRING_BACKEND", raising=False)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.setenv("KEPT", SECRET)
    (tmp_path / "kept").write_text(SECRET + "\n")
    with vendor(tmp_path / "vendor", accept, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        yield server


def test_no_secret_is_stored_and_everything_else_is_as_usual(
    moat: Moat, vendors: Vendor, home: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    for argv, place in [
        (("linear", "--from", "env://KEPT"), "env://KEPT"),
        (("github", "--command", f"cat {kept}", "--ttl", "1h"), "`cat`"),
        (("mcp", "acme", "--url", "https://mcp.example.com/", "--from", "env://KEPT"), "env://KEPT"),
    ]:
        done = moat("grant", *argv)
        assert done.returncode == 0, done.stderr
        assert f"takes {':'.join(argv[:2]) if argv[0] == 'mcp' else argv[0]} from {place}." in done.stdout
        assert SECRET not in done.stdout + done.stderr
    assert {asked.host for asked in vendors.asked} == {
        "api.linear.app",
        "api.github.com",
    }  # both were validated
    assert traces(SECRET, home / ".moat") == []
    rows = [line.split()[:3] for line in moat("grant", "list").stdout.splitlines()[1:]]
    assert rows == [["github", "token", "command"], ["linear", "token", "env"], ["mcp:acme", "token", "env"]]
    shown = json.loads(moat("grant", "show", "github", "--json").stdout)
    assert (shown["store"], shown["metadata"]) == (
        *("command", {"login": "octo", "from": f"command: cat {kept}", "ttl": "3600"}),
    )
    refused = moat("grant", "show", "github", "--show-token")
    assert (refused.returncode, "it is kept in `cat`" in refused.stderr) == (3, True)


WRONG = (
    (("linear", "--from", "env://NOT_SET"), 3, "the variable NOT_SET is not set"),
    (("linear", "--command", "false"), 3, "`false` failed with status 1"),
    (("linear", "--command", "echo wrong"), 3, "nothing was stored"),
    (("linear", "--from", "vault/item"), 2, "is no place that Moat knows"),
    (("linear", "--from", "env://A", "--command", "b"), 2, "not allowed with"),
    (("linear", "--from", "env://A", "--token-stdin"), 2, "not allowed with"),
    (("linear", "--from", "env://A", "--method", "env"), 2, "exclude each other"),
    (("linear", "--ttl", "5m"), 2, "--ttl belongs to --from or --command"),
    (("linear", "--from", "env://KEPT", "--ttl", "1s"), 2, "not from 5s to 24h"),
    (("anthropic", "--from", "env://KEPT"), 2, "an Anthropic API key starts with sk-ant-"),
)


def test_what_does_not_work_stores_nothing(moat: Moat, vendors: Vendor) -> None:
    del vendors
    for argv, status, message in WRONG:
        done = moat("grant", *argv)
        assert (done.returncode, message in done.stderr) == (status, True), done.stderr
        assert "Traceback" not in done.stderr
    assert json.loads(moat("grant", "list", "--json").stdout) == []


@pytest.mark.embedded
def test_a_run_asks_there_and_does_not_begin_without(
    moat: Moat, vendors: Vendor, home: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    assert moat("grant", "linear", "--from", "env://KEPT").returncode == 0
    assert moat("grant", "github", "--command", f"cat {kept}").returncode == 0
    script = """
    curl -sS -o /dev/null -o /dev/null -w '%{http_code} ' https://api.linear.app/graphql https://api.github.com/user
    env | grep -c KEPT; ls /proc/1/environ >/dev/null
    """
    command = ("run", "--runtime", "embedded", "-g", "linear", "-g", "github", "--", "sh", "-c", script)
    done = moat(*command)
    assert done.stdout.split()[:2] == ["200", "200"], done.stdout + done.stderr
    assert done.stdout.split()[2] == "0"
    assert traces(SECRET, home / ".moat") == []
    (journal,) = home.glob(".moat/runs/*/journal.jsonl")
    asked = {e.data["grant"]: e.data["source"] for e in entries(journal) if e.event == "source.asked"}
    assert asked == {"linear": "env://KEPT", "github": "`cat`"}
    assert {e.data["grant"] for e in entries(journal) if e.event == "secret.resolved"} == {"linear", "github"}

    kept.write_text("")
    failed = moat(*command, env={name: value for name, value in os.environ.items() if name != "KEPT"})
    assert (failed.returncode, failed.stdout) == (3, "")
    assert failed.stderr.splitlines() == [
        "moat: error: github: `cat` gave no credential: it is empty",
        "moat: error: linear: the variable KEPT is not set",
        "moat: hint: try the command in a shell; no shell is used for it here (`sh -c '…'` is one)",
        "moat: hint: set it in the shell that starts the run",
    ]
