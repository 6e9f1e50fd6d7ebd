"""Second places: real files, sockets and programs, also such that are full, slow, absent or dying."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.config.journal import CopyTo, JournalConfig
from moat.errors import MoatError, StartError
from moat.journal import Journal, copies as copying, keeping, sinks
from moat.journal.copies import Copier, Copies
from moat.journal.sinks import CommandSink, FileSink, SyslogSink
from moat.paths import Home
from moat.runtime.copying import copies_of
from tests.journal.kit import RUN, Kept
from tests.journal.test_writer import fill, small_disk


@pytest.fixture
def house(tmp_path: Path) -> Home:
    home = Home(tmp_path / "house")
    home.run(RUN).mkdir(parents=True, mode=0o700)
    return home


@contextlib.contextmanager
def copying_to(home: Home, *copiers: Copier) -> Iterator[tuple[Journal, Kept]]:
    copies = Copies(copiers)
    journal = keeping.begin(home, RUN, copies)
    yield journal, Kept(home, RUN)
    keeping.end(home, RUN, journal, copies)


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def events(kept: Kept) -> list[str]:
    return [json.loads(line)["event"] for line in kept.lines]


def test_a_file_gets_every_byte_as_it_happens(house: Home, tmp_path: Path) -> None:
    target = tmp_path / "copy.jsonl"
    with copying_to(house, Copier(FileSink(target), required=True)) as (journal, kept):
        journal.record("run.stop_asked", by="é")
        until(lambda: target.read_bytes() == kept.journal.read_bytes())
        target.rename(tmp_path / "rotated")
        journal.record("run.stop_asked", by="after rotation")
        until(lambda: target.exists() and target.read_bytes())
    assert (tmp_path / "rotated").read_bytes() + target.read_bytes() == kept.journal.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    assert events(kept)[-1] == "journal.sealed"


def test_a_full_second_disk_closes_the_network_only_when_it_is_required(
    house: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk") as disk, small_disk(tmp_path / "other") as other:
        needed = Copier(FileSink(disk / "copy"), required=True)
        extra = Copier(FileSink(other / "copy"), required=False)
        with copying_to(house, needed, extra) as (journal, kept):
            fill(other)
            for _ in range(12):
                journal.record("run.stop_asked", by="x" * 800)
            until(lambda: extra.failed)
            assert journal.failed is None, "it is not required"
            ballast = fill(disk)
            for _ in range(12):
                journal.record("run.stop_asked", by="x" * 800)
            until(lambda: journal.failed)
            assert journal.failed is not None
            assert f"its copy to file: {disk / 'copy'} fails: No space left" in str(journal.failed)
            assert not journal.record("run.stop_asked", by="nothing may happen now")
            ballast.unlink()
            until(lambda: journal.failed is None)
            monkeypatch.setattr(keeping, "_ARRIVAL", 1.0)
        told = [e for e in events(kept) if e.startswith("copy.")]
        assert told == ["copy.failed", "copy.failed", "copy.resumed"]
        copied = [
            line for line in (disk / "copy").read_bytes().splitlines(keepends=True) if line in kept.lines
        ]
        assert list(dict.fromkeys(copied)) == kept.lines, "in order, complete, beside one half line"
        assert kept.verify().status == 0


def test_a_required_place_that_is_not_there_keeps_the_run_from_starting(
    house: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_ARRIVAL", 0.5)
    copies = Copies([Copier(FileSink(tmp_path / "no/such/copy"), required=True)])
    with pytest.raises(MoatError, match=r"its copy to file: .* fails: No such file"):
        keeping.begin(house, RUN, copies)


@contextlib.contextmanager
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        yield server


RFC5424 = re.compile(
    rb"<86>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (\S{1,255}) moat (\d+) ([!-~]{1,32}) - (\{.*\})",
    re.DOTALL,
)


def test_syslog_by_udp_and_local_socket(house: Home, tmp_path: Path) -> None:
    with udp() as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.settimeout(5)
        port = server.getsockname()[1]
        with copying_to(
            house,
            Copier(SyslogSink(f"udp://127.0.0.1:{port}"), required=False),
            Copier(SyslogSink("local", str(tmp_path / "log")), required=True),
        ) as (journal, kept):
            journal.record("run.stop_asked", by="ü")
        for receiver in (server, log):
            messages = [RFC5424.fullmatch(receiver.recv(65536)) for _ in kept.lines]
            assert all(messages)
            assert [m[5] + b"\n" for m in messages if m] == kept.lines
            assert [m[4].decode() for m in messages if m] == events(kept)


def test_syslog_by_tcp_connects_again(house: Home) -> None:
    """Octet counting, and a server that goes away: what it did not take is sent to the next one."""
    got = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            for size in (1, -1):
                connection, _ = server.accept()
                with connection:
                    while data := connection.recv(65536):
                        got.extend(data)
                        if size > 0:
                            break

        thread = threading.Thread(target=serve)
        thread.start()
        target = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with copying_to(house, Copier(SyslogSink(target), required=True)) as (journal, kept):
            until(lambda: got)
            for number in range(3):
                time.sleep(0.2)
                journal.record("run.stop_asked", by=str(number))
        thread.join(10)
    found = []
    data = bytes(got)
    while data:
        size, _, rest = data.partition(b" ")
        match = RFC5424.fullmatch(rest[: int(size)])
        assert match
        found.append(match[5] + b"\n")
        data = rest[int(size) :]
    assert list(dict.fromkeys(found)) == kept.lines


WRITES = "import sys, os; open(sys.argv[1], 'ab', 0).write(b'start\\n'); [open(sys.argv[1], 'ab', 0).write(x) for x in sys.stdin.buffer]"
DIES = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.readline())"
SHOWS = (
    "import sys, os; open(sys.argv[1], 'w').write(repr([os.getcwd(), sorted(os.environ)])); sys.stdin.read()"
)


def test_a_command_gets_lines_and_ends_with_the_run(house: Home, tmp_path: Path) -> None:
    target = tmp_path / "out"
    sink = CommandSink([sys.executable, "-c", WRITES, str(target)])
    with copying_to(house, Copier(sink, required=True)) as (journal, kept):
        journal.record("run.stop_asked", by="x")
        until(lambda: target.exists() and b"stop_asked" in target.read_bytes())
        assert sink._process
        pid = sink._process.pid
    assert target.read_bytes() == b"start\n" + kept.journal.read_bytes()
    assert not Path(f"/proc/{pid}").exists()


def test_a_command_does_not_see_our_variables(
    house: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOAT_PASSPHRASE", "secret")
    target = tmp_path / "out"
    with copying_to(house, Copier(CommandSink([sys.executable, "-c", SHOWS, str(target)]), required=False)):
        until(lambda: target.exists() and target.read_text().endswith("]"))
    assert target.read_text().startswith("['/'")
    assert "MOAT_" not in target.read_text()


def test_a_command_that_dies_is_started_again_within_bounds(
    house: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_AGAIN", (0.02,))
    target = tmp_path / "out"
    copier = Copier(CommandSink([sys.executable, "-c", DIES, str(target)]), required=True)
    with copying_to(house, copier) as (journal, kept):
        for number in range(200):
            journal.record("run.stop_asked", by=str(number))
            time.sleep(0.02)
            if journal.failed and "ended 5 times" in str(journal.failed):
                break
        assert "it ended 5 times in a minute" in str(journal.failed)
        monkeypatch.setattr(keeping, "_ARRIVAL", 0.2)
    assert len(target.read_bytes().splitlines()) == 5
    assert "copy.failed" in events(kept)


def test_a_command_that_reads_nothing_holds_nothing_up(house: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_PATIENCE", 0.5)
    monkeypatch.setattr(copying, "_STUCK", 0.2)
    copier = Copier(CommandSink(["sleep", "60"]), required=True)
    with copying_to(house, copier) as (journal, kept):
        began = time.monotonic()
        for _ in range(150):
            journal.record("run.stop_asked", by="x" * 900)
        assert time.monotonic() - began < 2
        until(lambda: journal.failed)
        monkeypatch.setattr(keeping, "_ARRIVAL", 0.2)
    assert kept.verify().status == 0


def test_what_a_place_missed_is_counted(house: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_WAITING", 5)
    monkeypatch.setattr(copying, "_AGAIN", (0.05,))
    target = tmp_path / "not yet" / "copy"
    with copying_to(house, Copier(FileSink(target), required=False)) as (journal, kept):
        for number in range(20):
            journal.record("run.stop_asked", by=str(number))
        target.parent.mkdir()
        until(lambda: "copy.resumed" in events(kept))
    (resumed,) = [json.loads(line) for line in kept.lines if b"copy.resumed" in line]
    copied = target.read_bytes().splitlines(keepends=True)
    assert resumed["data"]["missed"] == len(kept.lines) - len(copied) > 0


def test_a_file_that_the_sandbox_could_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "ws")
    (tmp_path / "ws").mkdir()
    for path in (tmp_path / "ws/deep/copy", tmp_path / "link/copy", tmp_path / "ws/../ws/copy"):
        with pytest.raises(StartError, match="the sandbox could change"):
            copies_of(JournalConfig(copy_to=(CopyTo(file=path),)), [tmp_path / "ws"])
    assert (
        copies_of(JournalConfig(copy_to=(CopyTo(file=tmp_path / "ws2"),)), [tmp_path / "ws"]).failed is None
    )
    assert os.listdir(tmp_path / "ws") == []
