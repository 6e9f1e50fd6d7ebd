"""The log of a run: every byte, its stream and its time; a bound, and what happens at it."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from moat.cli.log_lines import Lines
from moat.runtime import output_log
from moat.runtime.output_log import OutputLog, Piece
from moat.runtime.sandbox import Output


def out(data: bytes) -> Output:
    return Output("stdout", data)


def err(data: bytes) -> Output:
    return Output("stderr", data)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every look at it is a second later."""
    monkeypatch.setattr(output_log.time, "time", itertools.count(1000.0).__next__)
    return iter(())


def written(directory: Path, *outputs: Output, limit: int = 1 << 20) -> OutputLog:
    log = OutputLog(directory, limit=limit)
    for output in outputs:
        log.write(output)
    return log


def kept(directory: Path, start: int = 0) -> list[Piece]:
    return list(output_log.pieces(directory, start, lambda: False))


@pytest.mark.usefixtures("clock")
def test_pieces_have_their_stream_and_time(tmp_path: Path) -> None:
    written(tmp_path, out(b"a\xff"), err(b"b\n"), out(b"c")).close()
    assert kept(tmp_path) == [
        Piece(out(b"a\xff"), 0, 1000.0),
        Piece(err(b"b\n"), 2, 1001.0),
        Piece(out(b"c"), 4, 1002.0),
    ]
    assert kept(tmp_path, 3) == [Piece(err(b"\n"), 3, 1001.0), Piece(out(b"c"), 4, 1002.0)]
    assert [output_log.since(tmp_path, moment) for moment in (0, 1000.5, 1002, 2000)] == [0, 2, 4, 5]
    assert (tmp_path / "output.log").read_bytes() == b"a\xffb\nc"


def test_what_comes_at_the_same_moment_shares_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that prints in single bytes must not make an index larger than its output."""
    monkeypatch.setattr(output_log.time, "time", lambda: 1000.0)
    written(tmp_path, *[out(b"x")] * 1000, err(b"y"), *[out(b"z")] * 1000).close()
    assert [piece.output for piece in kept(tmp_path)] == [out(b"x" * 1000), err(b"y"), out(b"z" * 1000)]
    assert (tmp_path / "output.log.index").stat().st_size < 100


def test_a_log_from_before_there_were_times(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_bytes(b"old\nlog\n")
    assert kept(tmp_path) == [Piece(out(b"old\nlog\n"), 0, None)]
    assert kept(tmp_path, output_log.last_lines(tmp_path, 1))[0].output == out(b"log\n")


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("broken", [b"", b"1001.0", b"1001.000 e", b"rubbish\n", b"1001.000 e 2"])
def test_a_lost_line_of_the_index_loses_no_byte(tmp_path: Path, broken: bytes) -> None:
    written(tmp_path, out(b"a\n"), err(b"b\n"), out(b"c\n")).close()
    index = tmp_path / "output.log.index"
    first, _second, third = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(first + broken + third)
    assert b"".join(piece.output.data for piece in kept(tmp_path)) == b"a\nb\nc\n"


def test_a_log_tells_where_its_hole_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = written(tmp_path, out(b"before"))
    real = log._append

    def full(_: Output) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "_append", full)
    assert log.write(out(b"lost!")) is True
    assert log.write(out(b"lost")) is False
    monkeypatch.setattr(log, "_append", real)
    log.write(out(b"after"))
    assert (tmp_path / "output.log").read_bytes() == (
        b"before\n[moat: 9 bytes of output could not be logged here]\nafter"
    )


def test_a_run_that_prints_for_ever_does_not_fill_the_disk(tmp_path: Path) -> None:
    """Seen to fail without `_put_aside`."""
    lines = [f"{number:07}\n".encode() for number in range(20000)]
    log = written(tmp_path, *map(out, lines), limit=40000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40000 + 100
    assert log.error == ""
    found = kept(tmp_path)
    text = b"".join(piece.output.data for piece in found)
    assert text == b"".join(lines)[-len(text) :], "the newest, without a hole"
    assert len(text) >= 15000
    assert found[0].at == 160000 - len(text)
    for count in (0, 1, 5, 2200, 5000):
        assert kept(tmp_path, output_log.last_lines(tmp_path, count)) == kept(
            tmp_path, max(found[0].at, 160000 - 8 * count)
        )
    assert output_log.tail(tmp_path, 15000) == text[-15000:]
    assert output_log.size(tmp_path) == 160000
    log.close()


def test_a_log_that_cannot_go_on_now_goes_on_later(tmp_path: Path) -> None:
    """Its descriptors were closed by then: their numbers became somebody else's, and were closed once more."""
    log = written(tmp_path, out(b"a" * 50), limit=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in (0, 1):
        opened = sorted(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1] + 1, hard))
        held = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            for fd in held[:spare]:
                os.close(fd)
            log.write(out(b"lost"))
            assert "Too many open files" in log.error
        finally:
            for fd in held[spare:]:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    log.write(out(b"found"))
    with open(os.devnull, "rb") as other:
        log.close()
        assert other.read() == b"", "it is still open"
    whole = b"".join(piece.output.data for piece in output_log.pieces(tmp_path, 0, lambda: False))
    assert whole == b"a" * 50 + b"\n[moat: 8 bytes of output could not be logged here]\nfound"


def test_the_end_of_a_log_in_which_nothing_is(tmp_path: Path) -> None:
    """`moat report` of a run that printed nothing. Seen to fail: its older half was read, which there is not."""
    written(tmp_path).close()
    assert output_log.tail(tmp_path, 100) == b""


def test_following_across_files(tmp_path: Path) -> None:
    log = written(tmp_path, out(b"first\n"), limit=40)
    more = iter([b"x" * 30, b"y" * 30, b"z" * 5])

    def alive() -> bool:
        data = next(more, None)
        if data is not None:
            log.write(out(data))
        return data is not None

    seen = [piece.output.data for piece in output_log.pieces(tmp_path, 0, alive)]
    assert b"".join(seen) == b"first\n" + b"x" * 30 + b"y" * 30 + b"z" * 5
    log.close()


@pytest.mark.parametrize(
    ("data", "count", "rest"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"\n\n\n", 1, b"\n"),
        (b"a\n", 0, b""),
        (b"x" * 70000 + b"\n" + b"y" * 70000 + b"\nz\n", 2, b"y" * 70000 + b"\nz\n"),
    ],
)
def test_where_the_last_lines_begin(tmp_path: Path, data: bytes, count: int, rest: bytes) -> None:
    (tmp_path / "output.log").write_bytes(data)
    assert data[output_log.last_lines(tmp_path, count) :] == rest


def test_lines_of_two_streams_that_come_in_turns() -> None:
    lines = Lines()
    pieces = [(out(b"a"), 1.0), (err(b"x\ny"), 2.0), (out(b"b\n\nc"), 3.0), (err(b"z\n"), 4.0)]
    found = [line for output, at in pieces for line in lines.feed(Piece(output, 0, at))] + [*lines.end()]
    assert [(line.stream, line.time, line.data) for line in found] == [
        ("stderr", 2.0, b"x"),
        ("stdout", 1.0, b"ab"),
        ("stdout", 3.0, b""),
        ("stderr", 2.0, b"yz"),
        ("stdout", 3.0, b"c"),
    ]


def test_a_line_without_end_comes_in_parts() -> None:
    lines = Lines()
    found = [line for _ in range(48) for line in lines.feed(Piece(out(b"x" * 65536), 0, 1.0))]
    found += [*lines.feed(Piece(out(b"end\n"), 0, 2.0))]
    assert [line.partial for line in found] == [True, True, True, False]
    assert b"".join(line.data for line in found) == b"x" * (48 * 65536) + b"end"


def test_it_is_private(tmp_path: Path) -> None:
    written(tmp_path, out(b"a"), limit=2).close()
    written(tmp_path, out(b"b"), limit=2).close()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("output.*")} == {0o600}
    assert os.path.getsize(tmp_path / "output.log") == 2


@given(
    numbers=st.integers(1, 300),
    end=st.sampled_from([b"last\n", b"part"]),
    sizes=st.lists(st.sampled_from([1, 3, 7, 50, 200]), min_size=1),
    limit=st.sampled_from([200, 400, 1000]),
    count=st.integers(0, 12),
)
def test_the_last_lines_of_a_log_in_two_files(
    numbers: int, end: bytes, sizes: list[int], limit: int, count: int
) -> None:
    """Wherever it was put aside. Seen failing: all of the newer file was read once there was an older one."""
    text = b"".join(b"%d\n" % number for number in range(numbers)) + end
    with tempfile.TemporaryDirectory() as name:
        directory, left = Path(name), text
        log = OutputLog(directory, limit=limit)
        for size in itertools.cycle(sizes):
            if not left:
                break
            log.write(Output("stdout", left[:size]))
            left = left[size:]
        log.close()
        held = _all(directory, 0)
        assert text.endswith(held)
        lines = held.splitlines(keepends=True)
        assert _all(directory, output_log.last_lines(directory, count)) == b"".join(
            lines[-count:] if count else []
        )


def _all(directory: Path, start: int) -> bytes:
    return b"".join(piece.output.data for piece in kept(directory, start))
