"""Writing: crashes, full disks, two processes, wrong clocks and odd data leave a journal that verifies."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings, strategies as st

from moat.errors import MoatError
from moat.journal import Journal, entry, keeping, ledger, verify, writer
from moat.journal.key import installation_key, is_public_key, public_key, verifies
from moat.journal.lines import parse_line
from moat.journal.verify import OK, TAMPERED, UNSURE
from moat.paths import Home
from moat.runtime.witness import Witness
from tests.journal.kit import RUN, Kept, begin, fill, make, small_disk


@pytest.fixture
def house(tmp_path: Path) -> Home:
    return Home(tmp_path / "house")


def test_an_entry_is_as_specified(house: Home) -> None:
    kept = make(house, events=1)
    first, second, last = (line.rstrip(b"\n") for line in kept.lines)
    assert kept.journal.stat().st_mode & 0o777 == 0o600
    found = json.loads(second)
    assert list(found) == ["seq", "at", "run", "event", "data", "prev", "sig"]
    assert found["prev"] == hashlib.sha256(first).hexdigest()
    body = second[: second.index(b',"sig":"')]
    assert (
        body
        == json.dumps({k: v for k, v in found.items() if k != "sig"}, separators=(",", ":"))[:-1].encode()
    )
    public = json.loads(first)["data"]["key"]
    assert public == installation_key(house).public
    assert verifies(public, bytes.fromhex(found["sig"]), b"moat journal entry 1\n" + body)
    assert json.loads(last)["event"] == "journal.sealed"
    assert json.loads(last)["data"] == {"entries": 3}


def test_openssl_agrees(house: Home, tmp_path: Path) -> None:
    """A verifier that shares no code with us: the signature is plain Ed25519 over the bytes of the line."""
    kept = make(house, events=1)
    line = kept.lines[1]
    body, _, rest = line.partition(b',"sig":"')
    (tmp_path / "message").write_bytes(b"moat journal entry 1\n" + body)
    (tmp_path / "sig").write_bytes(bytes.fromhex(rest[:128].decode()))
    raw = base64.b64decode(installation_key(house).public.removeprefix("ed25519:"))
    (tmp_path / "key.der").write_bytes(bytes.fromhex("302a300506032b6570032100") + raw)
    done = subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", tmp_path / "key.der",
         "-rawin", "-in", tmp_path / "message", "-sigfile", tmp_path / "sig"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.characters(categories=["Cs"]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner) | st.frozensets(st.text())
    ),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(st.text(), ANYTHING))
def test_odd_data_is_written_and_verifies(house: Home, data: dict[str, object]) -> None:
    number = next(RUNS)
    kept, journal = begin(house, f"run_{number:012x}")
    assert journal.record(
        "run.created", **{key: value for key, value in data.items() if key not in {"self", "event"}}
    )
    keeping.end(house, kept.run, journal)
    report = kept.verify()
    assert report.status == OK, report
    for line in kept.lines:
        found = entry.parse(line.rstrip(b"\n"))
        assert entry.plain(found.data) == found.data, "what was written is plain already"
        assert list(found.data) == sorted(found.data)


RUNS = itertools.count()


def test_what_is_too_long_is_cut_and_says_so(house: Home) -> None:
    kept, journal = begin(house)
    journal.record("run.created", text="é" * 100_000, **{f"f{n}": "x" * 1000 for n in range(100)})
    journal.record("run.created", text="é" * 100_000)
    keeping.end(house, RUN, journal)
    assert kept.verify().status == OK
    first, second = (json.loads(line)["data"] for line in kept.lines[1:3])
    assert first["too_long"] > 16_384
    assert second["text"] == "é" * 999 + "…"


def test_the_clock_may_jump(house: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, journal = begin(house)
    for at in (2e9, 1e9, 0.0, 4e9):
        monkeypatch.setattr(time, "time", lambda at=at: at)
        journal.record("run.stop_asked", by="somebody")
    keeping.end(house, RUN, journal)
    assert kept.verify().status == OK
    assert [json.loads(line)["at"][:4] for line in kept.lines[1:5]] == ["2033", "2001", "1970", "2096"]


def test_threads(house: Home) -> None:
    kept, journal = begin(house)

    def work(name: int) -> None:
        for _ in range(50):
            journal.record("run.stop_asked", by=str(name))
            journal.sync()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keeping.end(house, RUN, journal)
    assert (kept.verify().status, kept.verify().entries) == (OK, 202)


WRITER = """
import sys
from pathlib import Path
from moat.journal import keeping
from moat.paths import Home
from moat.runtime.witness import Witness
home, run = Home(Path(sys.argv[1])), sys.argv[2]
home.run(run).mkdir(parents=True, mode=0o700)
print("begun", flush=True)
journal = keeping.begin(home, run)
for number in range(int(sys.argv[3])):
    journal.record("run.stop_asked", by="é" * 200 + str(number))
    if number % 7 == 0:
        journal.sync()
keeping.end(home, run, journal)
"""


def writing(home: Home, run: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home.root), run, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_killed_at_any_moment(house: Home) -> None:
    """Kill -9 while it writes: what is there verifies, before and after somebody has looked at it."""
    installation_key(house)
    chance = random.Random(7)
    seen = set()
    for number in range(25):
        run = f"run_{number:012x}"
        with writing(house, run, 100_000) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.random() * 0.08)
            process.send_signal(signal.SIGKILL)
        report = verify.run(house, run, alive=False)
        # Killed before the ledger knew of it: nothing was recorded that could be missing.
        assert report.status == OK or (report.status == UNSURE and report.entries <= 1), report
        keeping.close_abandoned(house, run)
        again = verify.run(house, run, alive=False)
        assert again.status == report.status, again
        seen.add((report.status, report.entries > 5))
    assert (OK, True) in seen


def test_two_processes_at_once(house: Home) -> None:
    """One key and one whole ledger, whoever comes first."""
    with contextlib.ExitStack() as stack:
        for number in range(6):
            process = stack.enter_context(writing(house, f"run_{number:012x}", 20))
            stack.callback(process.wait, 30)
    reports = verify.every(house, ())
    assert [(r.status, r.state) for r in reports] == [(OK, "sealed")] * 6, reports
    assert len(ledger.lines(house)) == 12
    assert len({r.key for r in reports}) == 1


def test_many_makers_of_the_key_agree(tmp_path: Path) -> None:
    for number in range(20):
        home = Home(tmp_path / str(number))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            keys = {
                signer.public for signer in pool.map(lambda _, home=home: installation_key(home), range(8))
            }
        assert len(keys) == 1
        assert keys == {public_key(home)}
        assert [p.name for p in home.journal.iterdir()] == ["key"]
        assert (home.journal / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_that_others_can_read_is_refused(house: Home) -> None:
    installation_key(house)
    (house.journal / "key").chmod(0o644)
    with pytest.raises(MoatError, match="others may read"):
        installation_key(house)
    (house.journal / "key").chmod(0o600)
    (house.journal / "key").write_text("nonsense")
    with pytest.raises(MoatError, match="not a journal key"):
        installation_key(house)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:x", "ed25519:ü", "x" * 10_000])
def test_what_is_no_public_key(text: str) -> None:
    assert not is_public_key(text)
    assert not verifies(text, b"x" * 64, b"")


def test_a_full_disk_and_room_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        house = Home(disk / "house")
        kept, journal = begin(house)
        assert journal.record("run.stop_asked", by="before")
        ballast = fill(disk)
        count = 0
        while journal.record("run.stop_asked", by="x" * 500):
            count += 1
            assert count < 100
        assert journal.failed is not None
        assert journal.failed.strerror == "No space left on device"
        assert kept.verify(alive=True).status == OK, "no half line"
        assert kept.verify().status == OK, "nor when it ends like this"
        ballast.unlink()
        assert journal.failed is not None
        journal.retry()
        assert journal.failed is None
        assert journal.record("run.stop_asked", by="after")
        keeping.end(house, RUN, journal)
        report = kept.verify()
        assert (report.status, report.state, report.entries) == (OK, "sealed", count + 5), "nothing is lost"


def test_a_full_disk_until_the_end(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        house = Home(disk / "house")
        kept, journal = begin(house)
        fill(disk)
        while journal.record("run.stop_asked", by="x" * 500):
            pass
        keeping.end(house, RUN, journal)
        report = kept.verify()
        assert (report.status, report.state) == (OK, "unsealed")


def test_no_journal_begins_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        house = Home(disk / "house")
        house.run(RUN).mkdir(parents=True)
        installation_key(house)
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            keeping.begin(house, RUN)


def test_more_than_fits_into_memory_is_counted(house: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_MAX_WAITING", 5)
    kept, journal = begin(house)
    failing = monkeypatch.context()
    with failing as patch:
        patch.setattr(Journal, "_write_all", _no_space)
        for number in range(9):
            assert not journal.record("run.stop_asked", by=str(number))
    journal.retry()
    keeping.end(house, RUN, journal)
    events = [json.loads(line) for line in kept.lines]
    assert [e["event"] for e in events][-2:] == ["journal.lost", "journal.sealed"]
    assert events[-2]["data"] == {"entries": 4}
    assert events[-1]["data"] == {"entries": len(events)}
    assert kept.verify().status == OK


def _no_space(_journal: Journal, _data: bytes) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("how", ["cut", "grown", "removed", "replaced"])
def test_the_writer_notices_who_touches_its_file(house: Home, how: str) -> None:
    """And writes no more: what would have to be recorded must not happen."""
    kept, journal = begin(house)
    journal.record("run.stop_asked", by="x")
    data = kept.journal.read_bytes()
    if how == "cut":
        os.truncate(kept.journal, 100)
    elif how == "grown":
        kept.journal.write_bytes(data + b"{}\n")
    else:
        kept.journal.unlink()
    if how == "replaced":
        kept.journal.write_bytes(data)
    assert not journal.record("run.stop_asked", by="y")
    assert journal.failed is not None
    assert journal.failed.strerror == "somebody else changed the journal"
    journal.close()
    if how != "replaced":  # it is an honest copy, and nothing was written after it
        assert kept.verify().status == TAMPERED


def test_lost_power_is_a_doubt_and_no_accusation(house: Home) -> None:
    """What was not synced may be gone after a power cut; what was synced may not."""
    kept, journal = begin(house)
    journal.record("run.stop_asked", by="synced")
    journal.sync()
    journal.record("run.stop_asked", by="not synced")
    journal.close()
    lines = kept.lines
    material = verify.Material(
        RUN,
        b"".join(lines[:-1]),
        kept.head.read_bytes(),
        ledger.about(ledger.lines(house), RUN),
        alive=False,
        boot="b",
    )
    keys = [installation_key(house).public]
    assert verify.judge(material, keys).status == UNSURE
    cut = verify.Material(RUN, b"".join(lines[:-2]), material.head, material.ledger, alive=False, boot="b")
    assert verify.judge(cut, keys).status == TAMPERED
    torn = verify.Material(RUN, b"".join(lines), b"\0" * 512, material.ledger, alive=False, boot="b")
    assert verify.judge(torn, keys).status == UNSURE


def test_a_loop_cannot_outgrow_the_limit_and_how_the_run_ends_is_told(house: Home) -> None:
    """Seen failing without `_admits`: the file grows with every event."""
    house.run(RUN).mkdir(parents=True)
    kept, journal = Kept(house, RUN), keeping.begin(house, RUN, limit=20_000)
    count = 0
    while journal.record("ssh.sign", hosts=["h.example"], key="x" * 100, user="git"):
        count += 1
        assert count < 100
    for _ in range(500):
        assert not journal.record("ssh.sign", hosts=["h.example"], key="x" * 100, user="git")
    assert journal.full
    assert "reached its limit of 20,000 bytes" in str(journal.failed)
    journal.record("run.ended", state="stopped", exit_code=0, error="")
    keeping.end(house, RUN, journal)
    assert kept.journal.stat().st_size < 22_000
    report = kept.verify()
    assert (report.status, report.state) == (OK, "sealed")
    *_, full, lost, ended, sealed = [entry.parse(line.strip()) for line in kept.lines]
    assert [full.event, lost.event, ended.event] == ["journal.full", "journal.lost", "run.ended"]
    assert lost.data == {"entries": 501}
    assert sealed.data["entries"] == len(kept.lines)


def test_repeats_are_counted_and_every_one_is_told(house: Home) -> None:
    """Seen failing with `often` as another name for `record`: 3,000 entries."""
    kept, journal = begin(house)
    for _ in range(3):
        for number in range(1000):
            assert journal.often("ssh.list", hosts=[], keys=["k"])
            assert journal.often("mcp.called", server="s", tool=f"tool {number % 150}", rule="")
        journal.note_repeats()
    keeping.end(house, RUN, journal)
    found = [entry.parse(line.strip()) for line in kept.lines]
    told: dict[str, int] = {}
    for one in found:
        told[one.event] = told.get(one.event, 0) + one.data.get("count", 1)
    assert (told["ssh.list"], told["mcp.called"]) == (3000, 3000)
    assert found[1].data == {"hosts": [], "keys": ["k"]}, "the first is there at once"
    assert len(found) < 500
    assert kept.verify().status == OK


@pytest.mark.parametrize(("filled", "seconds"), [(0, 0.5), (1 / 8, 5), (1 / 2, 60)])
def test_what_a_kill_may_lose_is_as_documented(
    house: Home, monkeypatch: pytest.MonkeyPatch, filled: float, seconds: float
) -> None:
    """docs/audit.md: half a second of numbers, five or sixty in a journal that fills up; never a first use."""

    async def at_once(call: Callable[[], None]) -> None:
        call()

    # A clock that jumps when nothing is to be done would jump while a thread is at work.
    monkeypatch.setattr("moat.runtime.witness.anyio.to_thread.run_sync", at_once)
    kept, journal = begin(house)
    journal.close()
    kept.journal.unlink(), kept.head.unlink()
    journal = Journal(kept.journal, run=RUN, limit=60_000)
    while journal.filled < filled:
        journal.record("run.stop_asked", by="x" * 900)
    noted = []

    async def main() -> None:
        witness = Witness(journal)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(witness.run)
            await trio.sleep(0.6)  # a note was just made, for nobody
            for number in (1, 2):
                witness.on_use(number, "api.test:443", ("example",))
            start = trio.current_time()
            assert kept.journal.read_bytes().count(b"grant.used") == 1
            while kept.journal.read_bytes().count(b"grant.used") < 2:
                await trio.sleep(0.1)
            noted.append(trio.current_time() - start)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    journal.close()
    assert seconds * 0.8 - 0.2 <= noted[0] <= seconds + 1


def test_a_line_that_is_nested_too_deep_is_none() -> None:
    """Whoever shows a journal or a trace skips it. Seen failing: a traceback."""
    assert parse_line(b'{"a":' + b"[" * 100_000) is None
    assert parse_line(b'{"a":[]}') == {"a": []}
