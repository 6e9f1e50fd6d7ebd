"""network.jsonl: what a record holds, that nothing secret is in it, and what happens when it cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from moat.journal import LineWriter, read_lines
from moat.proxy import Denial, ExchangeFinished, Trace
from moat.proxy.fields import join_fields
from moat.proxy.trace import Shown, from_record, to_record
from tests.journal.kit import fill, small_disk
from tests.proxy.conftest import PLACEHOLDER, SECRET, HouseMaker
from tests.proxy.peers import Origin
from tests.proxy.test_exchange import API, get

EVENT = ExchangeFinished(
    started=1_700_000_000.1234,
    duration=0.0421,
    method="POST",
    url="https://api.test/v1?x=1",
    status=200,
    request_headers=(("Host", "api.test"), ("Accept", "a"), ("Accept", "b")),
    response_headers=(("Content-Type", "text/plain"),),
    request_bytes=12,
    response_bytes=34,
    grants=("demo",),
    denial=Denial(code="policy", reason="because", rule="strict", hint="do"),
    error="upstream closed early",
)


def test_a_record_and_back() -> None:
    record = json.loads(json.dumps(to_record(EVENT)))
    assert record["ts"] == "2023-11-14T22:13:20.123Z"
    assert record["duration_ms"] == 42.1
    back = from_record(record)
    assert back == ExchangeFinished(
        **{
            **EVENT._asdict(),
            "started": pytest.approx(EVENT.started, abs=0.001),
            "duration": pytest.approx(EVENT.duration, abs=0.0001),
        }
    )


@pytest.mark.parametrize("record", [{}, {"ts": "now"}, {**to_record(EVENT), "denial": {"x": 1}}])
def test_what_is_no_record_is_told(record: dict) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_record(record)


def test_headers_are_shown_without_secrets() -> None:
    block = join_fields(
        (
            (b"Host", b"api.test"),
            (b"Authorization", b"Bearer x"),
            (b"PROXY-Authorization", b"Basic x"),
            (b"Proxy-Anything", b"x"),
            (b"Cookie", b"x"),
            (b"X-Mine", b"x"),
            (b"X-Caf\xe9", b"\xff"),
        )
    )
    fields = Shown(block, frozenset({b"x-mine"}))
    assert "Bearer" not in repr(fields)
    assert [value for _, value in fields] == ["api.test", *["[REDACTED]"] * 5, "\xff"]


def test_the_file_never_holds_a_secret(make: HouseMaker, origin: Origin, tmp_path: Path) -> None:
    path = tmp_path / "network.jsonl"
    with make(origins={API: origin}, token="t0ken") as house:
        trace = Trace(LineWriter(path))
        with house.connected("api.test:443", "Proxy-Authorization: Bearer t0ken") as tunnel:
            with tunnel.tls(house.trust, "api.test") as wire:
                wire.send(get("/gzip", f"Authorization: Bearer {PLACEHOLDER}", "Cookie: mine=1"))
                assert wire.message().status == 200
        trace.add(house.event())
        trace.flush()
    text = path.read_text()
    assert SECRET not in text
    assert "t0ken" not in text
    assert PLACEHOLDER not in text
    assert path.stat().st_mode & 0o777 == 0o600
    [record] = read_lines(path)
    assert (record["url"], record["status"], record["grants"]) == ("https://api.test/gzip", 200, ["demo"])


@pytest.mark.anyio
async def test_records_are_written_in_batches_and_at_the_end(anyio_backend, tmp_path: Path) -> None:
    path = tmp_path / "network.jsonl"
    trace = Trace(LineWriter(path))
    async with anyio.create_task_group() as tasks:
        await tasks.start(trace.run)
        trace.add(EVENT)
        trace.add(EVENT)
        assert list(read_lines(path)) == []
        await anyio.sleep(0.3)
        assert len(list(read_lines(path))) == 2
        trace.add(EVENT)
        tasks.cancel_scope.cancel()
    assert len(list(read_lines(path))) == 3


def test_a_full_disk_stops_the_run_and_a_freed_one_lets_it_go_on(tmp_path: Path) -> None:
    """Nothing is lost and no line is half. Seen failing when LineWriter kept the half of a batch that fitted."""
    with small_disk(tmp_path / "disk") as disk:
        trace = Trace(LineWriter(disk / "network.jsonl"))
        trace.add(EVENT)
        trace.flush()
        assert trace.ready() is None
        ballast = fill(disk)
        count = 1
        while (denial := trace.ready()) is None:
            trace.add(EVENT)
            trace.flush()
            count += 1
            assert count < 1000
        assert (denial.code, "No space left" in denial.reason) == ("journal", True)
        assert "free space" in denial.hint
        ballast.unlink()
        trace.flush()
        assert trace.ready() is None
        assert len(list(read_lines(disk / "network.jsonl"))) == count


def test_what_does_not_fit_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit, and beyond what is kept in memory while the disk is full."""
    told: list[str] = []
    path = tmp_path / "network.jsonl"
    writer = LineWriter(path)
    trace = Trace(writer, limit=2_000, on_full=lambda: told.append("full"))
    for _ in range(100):
        trace.add(EVENT)
        trace.flush()
    trace.finish()
    writer.close()
    *_, last = found = list(read_lines(path))
    assert last == {"dropped": trace.dropped}
    assert told == ["full"]
    assert found[-2] == {"full": 2_000}
    assert len(found) - 2 + trace.dropped == 100
    assert path.stat().st_size < 3_000
    assert writer.written[0] == path.stat().st_size
