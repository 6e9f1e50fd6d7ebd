"""`moat status`, `moat top` and `moat report`: what runs did, shown without believing any of it.

The trace and the output are an agent's: hostile names, reasons and text must neither draw on a terminal nor be
markup in a page.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from moat.cli.top import Screen
from moat.paths import Home, private_dir
from moat.runtime import records
from moat.runtime.records import Ownership, RunRecord, State
from moat.runtime.tally import OTHERS, Tally, in_words, summary
from tests.endpoints.chromium import chromium

Moat = Callable[..., subprocess.CompletedProcess[str]]
EVIL = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>\x1b[2J\u202e"


def exchange(number: int, url: str, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "ts": f"2026-11-26T18:46:{number % 60:02}.500Z",
        "method": "GET",
        "url": url,
        "status": 200,
        "duration_ms": 400.0,
        "request_bytes": 10,
        "response_bytes": 2000,
    } | more


def denial(reason: str) -> dict[str, Any]:
    return {"denial": {"code": "policy", "reason": reason, "rule": "the default"}, "status": 403}


TRACE = [
    exchange(1, "https://api.anthropic.com/v1/messages", grants=["anthropic"]),
    exchange(2, "https://api.anthropic.com/v1/messages", grants=["anthropic"], duration_ms=3000.0),
    exchange(3, f"https://evil.test/{EVIL}", **denial(f"not allowed {EVIL}")),
    exchange(4, f"https://{EVIL}/", method=EVIL, status=None, error=f"gone {EVIL}"),
    {"dropped": 5},
]


@pytest.fixture
def run(home: Path) -> Iterator[RunRecord]:
    """A run that lives as far as anybody can see: this process owns it."""
    place = Home.from_environment()
    record = RunRecord(
        id="run_00000000000a",
        name="watched",
        workspace="/w",
        argv=("sh", "-c", EVIL),
        created_at=time.time() - 60,
        started_at=time.time() - 59,
        state=State.RUNNING,
        runtime="embedded",
        grants=("anthropic",),
        pid=os.getpid(),
    )
    private_dir(place.root)
    private_dir(place.runs)
    with Ownership(place.run(record.id)):
        records.write(place, record)
        write(place, record, TRACE)
        (place.run(record.id) / "output.log").write_text(f"first line\n{EVIL}\n</pre>last line\n")
        yield record


def write(place: Home, record: RunRecord, trace: list[dict[str, Any]]) -> None:
    with (place.run(record.id) / "network.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in trace)


def test_what_a_trace_adds_up_to(run: RunRecord) -> None:
    place = Home.from_environment()
    tally = Tally(place.run(run.id) / "network.jsonl")
    tally.update()
    assert (tally.sums.requests, tally.sums.denied, tally.sums.failed) == (4, 1, 1)
    assert (tally.credentials, tally.dropped) == ({"anthropic": 2}, 5)
    assert summary(tally) == "9 requests, 1 denied, 2 with anthropic"
    path = place.run(run.id) / "network.jsonl"
    line = json.dumps(exchange(5, "https://late.test/"))
    for piece in (line[:20], line[20:] + "\n"):
        with path.open("a") as file:
            file.write(piece)
        tally.update()
    assert tally.hosts["late.test"].requests == 1
    write(place, run, [exchange(6, f"https://h{number}.test/") for number in range(2000)])
    tally.update()
    assert len(tally.hosts) == 1001
    assert tally.hosts[OTHERS].requests == 1004
    assert [in_words(size) for size in (0, 999, 1000, 1_500_000, 2e9)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 MB",
        "2.0 GB",
    ]
    assert summary(Tally(path.with_name("none"))) == ""


def test_status_of_a_run(run: RunRecord, moat: Moat) -> None:
    told = moat("status", "watched").stdout
    assert "\x1b" not in told
    lines = dict(line.split(":", 1) for line in told.splitlines())
    assert lines["state"].split() == ["running", "for", "59s"] or lines["state"].endswith("m")
    assert lines["network"].strip() == "9 requests, 1 denied, 2 with anthropic"
    value = json.loads(moat("status", "--json").stdout)
    assert (value["id"], value["network"]["down"]) == (run.id, 8000)


def test_top_for_scripts_and_small_screens(run: RunRecord, moat: Moat) -> None:
    once = moat("top", "--once").stdout
    assert "\x1b" not in once
    assert "\u202e" not in once
    row = next(line for line in once.splitlines() if line.startswith("api.anthropic.com"))
    assert row.split() == ["api.anthropic.com", "watched", "2", "0", "0", "20", "B", "4.0", "kB"]
    (value,) = json.loads(moat("top", "--json").stdout)
    assert (value["name"], value["requests"], value["denied"]) == ("watched", 4, 1)
    screen = Screen(Home.from_environment())
    screen.look()
    for rows in (1, 3, 8, 24):
        drawn = screen.lines(rows, 40)
        assert len(drawn) <= rows
        assert all(len(line) <= 40 for line in drawn)
    refused = moat("top")
    assert (refused.returncode, "moat top --once" in refused.stderr) == (2, True)


def test_top_at_a_terminal(run: RunRecord, moat_bin: str) -> None:
    """It follows, draws only what changed, and leaves the screen as it was."""
    screen = pyte.Screen(80, 24)
    stream = pyte.Stream(screen)
    with pexpect.spawn(moat_bin, ["top"], dimensions=(24, 80), encoding="utf-8", timeout=20) as top:
        _until(top, stream, lambda: "api.anthropic.com" in "\n".join(screen.display))
        assert screen.display[0].startswith("RUN")
        assert "watched  running" in screen.display[1]
        assert "DENIED" in [line.strip() for line in screen.display]
        assert screen.display[23].startswith("q quits")
        write(Home.from_environment(), run, [exchange(7, "https://new.test/")])
        _until(top, stream, lambda: "new.test" in "\n".join(screen.display))
        time.sleep(1.5)
        drawn = top.read_nonblocking(100_000, timeout=5)
        assert len(drawn) < 400, "a second in which only an age changed"
        assert "\x1b[2J" not in drawn
        top.send("q")
        top.expect(pexpect.EOF)
        assert "\x1b[?1049l" in (top.before or "")
        top.close()
        assert top.exitstatus == 0


def _until(child: Any, stream: pyte.Stream, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        try:
            stream.feed(child.read_nonblocking(65536, timeout=0.2))
        except pexpect.TIMEOUT:
            continue


@pytest.mark.anyio
async def test_a_report_in_a_browser(run: RunRecord, moat: Moat, home: Path, tmp_path: Path) -> None:
    """Seen failing without the escaping in `report_page._text`: the image is then an element of the page."""
    done = moat("report", "watched")
    path = Path(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert (done.returncode, path.stat().st_mode & 0o777) == (0, 0o600)
    async with chromium(home) as page:
        await page.open(path.as_uri())
        assert await page.run("document.title") == "watched - Moat"
        assert await page.run("document.querySelectorAll('script, img, iframe, link, object').length") == 0
        assert await page.run(
            "[...document.querySelectorAll('*')].every(e => ![...e.attributes].some(a =>"
            " a.name.startsWith('on') || a.name == 'src' || a.name == 'href'))"
        )
        assert await page.run("document.querySelectorAll('rect').length") == 4
        widths = await page.run(
            "[...document.querySelectorAll('rect')].map(r => r.getBoundingClientRect().width)"
        )
        assert widths[1] > 3 * widths[0] > 0
        assert (
            await page.run("getComputedStyle(document.querySelector('rect.denied')).fill")
            == "rgb(204, 34, 34)"
        )
        text = await page.run("document.body.innerText")
        assert "<script>document.title='owned'</script>" in text
        assert "last line" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        urls = [
            e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"
        ]
        assert urls == [path.as_uri()]
        await page.screenshot(tmp_path / "report.png")
    trap = tmp_path / "workspace/report.html"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    trap.symlink_to(victim)
    assert moat("report", "-o", str(trap)).returncode == 0
    assert (victim.read_text(), trap.is_symlink()) == ("mine", False)
    assert moat("report", "-o", "-").stdout.startswith("<!doctype html>")
    assert moat("report", "-o", "/proc/x").returncode == 3


@pytest.mark.embedded
def test_the_end_is_summed_up_for_who_has_come_back(
    home: Path, moat: Moat, moat_bin: str, tmp_path: Path
) -> None:
    script = "until [ -e go ]; do sleep 0.05; done; touch got; exit 3"
    place = tmp_path / "workspace"
    started = moat("run", "-d", "--runtime", "embedded", "--name", "long", "--", "sh", "-c", script)
    assert started.returncode == 0, started.stderr
    with pexpect.spawn(moat_bin, ["attach", "long"], cwd=place, timeout=30, encoding="utf-8") as terminal:
        terminal.expect_exact("attached to long")
        (place / "go").touch()
        terminal.expect_exact("moat: 2 files added — moat review long")
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 3


@pytest.mark.embedded
def test_the_end_of_a_run_is_summed_up_and_its_phases_are_told(
    home: Path, moat: Moat, moat_bin: str, tmp_path: Path
) -> None:
    script = "curl -s http://169.254.169.254/ > got; sleep 0.3"
    argv = ["run", "--runtime", "embedded", "--name", "short", "--", "sh", "-c", script]
    with pexpect.spawn(moat_bin, argv, cwd=tmp_path / "workspace", timeout=30, encoding="utf-8") as terminal:
        terminal.expect_exact("moat: 1 request, 1 denied; 1 file added — moat review short")
        terminal.expect(pexpect.EOF)
    header, *rows = moat("trace", "short").stdout.splitlines()
    assert header.split() == ["PHASE", "BEGAN", "TOOK"]
    assert [row.split()[0] for row in rows] == ["preparing", "waiting", "running", "releasing"]
    found = {phase["name"]: phase["seconds"] for phase in json.loads(moat("trace", "--json").stdout)}
    assert 0.3 <= found["running"] < 20
    assert moat("trace", "-f").returncode == 2
    state = moat("status").stdout.splitlines()[2]
    assert re.fullmatch(r"state:      stopped \d+s ago after \d+s, exit status 0", state)
