"""`moat trace --network`: what a run asked for, what became of it, and nothing that draws on a terminal."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.cli.trace import describe

Moat = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.embedded
GUARDED = "http://169.254.169.254"  # refused by the address guard: nothing is contacted


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")


def test_one_line_each(moat: Moat) -> None:
    moat("run", "--", "curl", "-s", f"{GUARDED}/a?b=c")
    line, reason = moat("trace", "--network").stdout.splitlines()
    assert re.fullmatch(rf"\[\d\d:\d\d:\d\d\] GET {GUARDED}/a\?b=c 403 \(\d+ ms\)", line)
    assert "metadata" in reason


def test_verbose_and_json(moat: Moat) -> None:
    moat("run", "--", "curl", "-s", "-H", "X-Mine: yes", "-H", "Authorization: Bearer mine", f"{GUARDED}/a")
    verbose = moat("trace", "--network", "-v").stdout
    assert "    > X-Mine: yes\n" in verbose
    assert "    > Authorization: [REDACTED]\n" in verbose
    assert "    < " in verbose
    assert "bytes down" in verbose
    (record,) = [json.loads(line) for line in moat("trace", "--network", "--json").stdout.splitlines()]
    assert (record["method"], record["url"], record["status"]) == ("GET", f"{GUARDED}/a", 403)
    assert record["denial"]["code"] == "address"


def test_following(moat: Moat, moat_bin: str) -> None:
    fetch = f"curl -s -o /dev/null {GUARDED}"
    moat("run", "-d", "--name", "x", "--", "sh", "-c", f"{fetch}/1; sleep 1; {fetch}/2; sleep 1")
    with subprocess.Popen(
        [moat_bin, "trace", "--network", "-f", "--json", "x"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        urls = [json.loads(line)["url"] for line in process.stdout]
    assert urls == [f"{GUARDED}/1", f"{GUARDED}/2"]


def test_a_run_without_requests(moat: Moat) -> None:
    moat("run", "--", "true")
    done = moat("trace", "--network")
    assert (done.stdout, done.returncode) == ("", 0)
    assert done.stderr.endswith(" has asked for nothing\n")
    assert moat("trace", "--network", "--json").stderr == ""
    assert moat("trace", "--network", "nothing").returncode == 2


def test_torn_and_foreign_lines_are_skipped(moat: Moat, home: Path) -> None:
    moat("run", "--", "curl", "-s", f"{GUARDED}/a")
    (path,) = (home / ".moat/runs").glob("*/network.jsonl")
    good = path.read_bytes()
    path.write_bytes(b"{torn\n[]\n\xff\n" + good + b'{"half')
    assert len(moat("trace", "--network", "--json").stdout.splitlines()) == 1


def test_what_the_sandbox_sent_does_not_draw() -> None:
    record = {
        "ts": "2026-11-22T15:04:05.000Z",
        "method": "GET",
        "url": "http://x/\x1b[2J\x9b31m\r\n\u202e",
        "status": 0,
        "duration_ms": 1.5,
        "request_headers": [["X-\x07", "\x1b]0;t\x07"]],
        "response_headers": [],
        "request_bytes": 0,
        "response_bytes": 0,
        "error": "bad \x1b",
        "denial": {"reason": "\x1b[31m", "rule": "r"},
    }
    text = "\n".join(describe(record, verbose=True))
    assert "ERR (2 ms)" in text
    assert all(character.isprintable() or character == "\n" for character in text)
