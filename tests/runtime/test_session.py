"""Fan-out: order, patience, the ring, sizes, redraw, and a log that cannot be written."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from moat.runtime.local import LocalViewer
from moat.runtime.output_log import OutputLog
from moat.runtime.questions import Asked
from moat.runtime.sandbox import Output
from moat.runtime.session import RING, Session
from moat.runtime.size import Size
from moat.runtime.viewer import SocketViewer
from moat.runtime.viewers import fit

pytestmark = pytest.mark.anyio


class Script:
    """A sandbox that prints what it is told and notes what is done to it. Sans-IO: no process behind it."""

    def __init__(self) -> None:
        self.printed: asyncio.Queue[Output | None] = asyncio.Queue()
        self.sizes: list[Size] = []
        self.written: list[bytes] = []
        self.signals: list[int] = []
        self.delays: list[float] = []  # of the next sizes, as an engine has them

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.printed.put_nowait(Output("stdout", piece))

    def end(self) -> None:
        self.printed.put_nowait(None)

    async def start(self) -> None: ...

    async def read(self) -> Output | None:
        return await self.printed.get()

    async def write(self, data: bytes) -> None:
        for byte in data:
            self.written.append(bytes([byte]))
            await anyio.lowlevel.checkpoint()

    async def close_stdin(self) -> None:
        self.written.append(b"<eof>")

    async def resize(self, size: Size) -> None:
        await anyio.sleep(self.delays.pop(0) if self.delays else 0)
        self.sizes.append(size)

    async def signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGCONT and self.signals.count(number) == 1:
            raise OSError("it has just ended")

    async def wait(self) -> int:
        return 0

    async def destroy(self) -> None: ...


class Eyes:
    """A viewer that notes what it is shown; `open` says whether it takes more."""

    def __init__(self, size: Size | None = None, patience: float | None = 0.05) -> None:
        self.size = size
        self.patience = patience
        self.seen: list[Output] = []
        self.told: list[str] = []
        self.shown: list[bytes] = []
        self.asked: list[str] = []
        self.skipped = 0
        self.open = anyio.Event()
        self.open.set()

    @property
    def text(self) -> bytes:
        return b"".join(output.data for output in self.seen)

    def offer(self, output: Output) -> None:
        self.seen.append(output)

    async def caught_up(self) -> None:
        await self.open.wait()

    def notice(self, text: str) -> None:
        self.told.append(text)

    def show(self, screen: bytes) -> None:
        self.shown.append(screen)

    def ask(self, waiting: Sequence[Asked]) -> None:
        self.asked = [question.name for question in waiting]

    def skip(self) -> None:
        self.skipped += 1


def make(tmp_path: Path, tty: Size | None = None) -> tuple[Session, Script]:
    sandbox = Script()
    log = OutputLog(tmp_path, limit=1 << 20)
    return Session(sandbox, tty=tty, log=log, on_log_error=lambda _: None), sandbox


async def test_everybody_sees_everything_in_order(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path)
    first, second = Eyes(), Eyes()
    session.add(first)
    session.add(second)
    sandbox.say(b"a", b"b")
    sandbox.printed.put_nowait(Output("stderr", b"!"))
    sandbox.end()
    await session.pump()
    assert (
        first.seen == second.seen == [Output("stdout", b"a"), Output("stdout", b"b"), Output("stderr", b"!")]
    )
    assert (tmp_path / "output.log").read_bytes() == b"ab!"
    assert (tmp_path / "output.log").stat().st_mode & 0o777 == 0o600


async def test_a_stuck_viewer_misses_something_and_the_agent_goes_on(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path)
    stuck, other = Eyes(), Eyes()
    stuck.open = anyio.Event()
    session.add(stuck)
    session.add(other)
    sandbox.say(b"a", b"b")
    sandbox.end()
    with anyio.fail_after(5):
        await session.pump()
    assert stuck.skipped == 2
    assert other.text == b"ab"
    assert session.viewers == (stuck, other)


async def test_the_pipe_of_the_run_itself_is_waited_for(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path)
    pipe = Eyes(patience=None)
    pipe.open = anyio.Event()
    session.add(pipe)
    sandbox.say(b"a", b"b")
    sandbox.end()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.pump)
        await anyio.sleep(0.2)
        assert pipe.text == b"a", "nothing more is read while the pipe is full"
        assert sandbox.printed.qsize() == 2
        pipe.open.set()
    assert pipe.text == b"ab"
    assert not pipe.skipped


async def test_who_comes_later_sees_the_end_of_a_plain_run(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path)
    sandbox.say(b"x" * 1000, *[b"%07d\n" % n for n in range(RING // 8)])
    sandbox.end()
    await session.pump()
    late = Eyes()
    session.add(late)
    assert len(late.text) <= RING
    assert late.text.endswith(b"%07d\n" % (RING // 8 - 1))
    assert b"x" not in late.text


FULL = b"\x1b[?1049h\x1b[?2004h"


async def test_who_comes_later_to_a_full_screen_program_gets_what_it_has_drawn(tmp_path: Path) -> None:
    """Before the program does anything: some redraw late, some never."""
    session, sandbox = make(tmp_path, Size(80, 24))
    session.begun.set()
    sandbox.say(b"shell\r\n" + FULL, b"\x1b[3;4Hdrawing")
    sandbox.end()
    await session.pump()
    late = Eyes(Size(80, 24))
    session.add(late)
    assert late.shown == [FULL + b"\x1b[3;4Hdrawing"]


async def test_what_was_drawn_for_another_size_is_not_shown(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path, Size(80, 24))
    session.begun.set()
    early, late = Eyes(Size(100, 30)), Eyes(Size(90, 30))
    sandbox.say(FULL + b"drawing")
    sandbox.end()
    await session.pump()
    session.add(early)
    await session.redraw()
    session.add(late)
    assert late.shown == [FULL]


async def test_a_drawing_without_a_beginning_is_not_shown(tmp_path: Path) -> None:
    """The ring has forgotten where it began: half a screen is worse than a blank one."""
    session, sandbox = make(tmp_path, Size(80, 24))
    session.begun.set()
    sandbox.say(FULL, *[b"\x1b[5;5H" + b"x" * 4096] * (RING // 4096 + 2))
    sandbox.end()
    await session.pump()
    late = Eyes(Size(80, 24))
    session.add(late)
    assert late.shown == [FULL]


async def test_who_was_too_slow_is_brought_up_to_date(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path, Size(80, 24))
    session.begun.set()
    slow = Eyes(Size(80, 24))
    session.add(slow)
    sandbox.say(b"one\r\n", b"two\r\n")
    sandbox.end()
    await session.pump()
    await session.resync(slow)
    assert slow.shown == [b"", b"one\r\ntwo\r\n"]
    assert sandbox.sizes == [Size(79, 24), Size(80, 24)], "and the program paints what it likes to"


async def test_the_smallest_terminal_wins(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path, Size(80, 24))
    large, small = Eyes(Size(200, 50)), Eyes(Size(100, 60))
    session.add(large)
    await session.resize(large, Size(200, 50))
    session.add(small)
    await session.resize(small, Size(100, 60))
    await session.remove(small)
    assert sandbox.sizes == [Size(200, 50), Size(100, 50), Size(200, 50)]
    await session.remove(large)
    assert sandbox.sizes[-1] == Size(200, 50), "nobody is there: the size stays"


async def test_everybody_is_asked_and_the_program_repaints_after_the_last_answer(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path, Size(80, 24))
    first, later = Eyes(Size(80, 24)), Eyes(Size(80, 24))
    session.add(first)
    questions = [Asked(f"{name}.test", 443, "https", "GET", "/", 0.0, 1) for name in "ab"]
    await session.ask(questions)
    session.add(later)
    assert first.asked == later.asked == ["a.test", "b.test"]
    await session.ask(questions[1:])
    assert later.asked == ["b.test"]
    assert sandbox.sizes == []
    later.asked = ["what it saw before it fell behind"]
    await session.resync(later)
    assert later.asked == ["b.test"]
    sandbox.sizes.clear()
    await session.ask([])
    assert (first.asked, sandbox.sizes) == ([], [Size(79, 24), Size(80, 24)])


async def test_redraw_wobbles_the_width(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path, Size(80, 24))
    session.add(Eyes(Size(80, 24)))
    await session.redraw()
    assert sandbox.sizes == [Size(79, 24), Size(80, 24)]


async def test_a_new_size_makes_a_program_paint_by_itself(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path, Size(80, 24))
    session.add(Eyes(Size(100, 30)))
    await session.redraw()
    assert sandbox.sizes == [Size(100, 30)]


async def test_the_size_that_was_asked_for_last_arrives_last(tmp_path: Path) -> None:
    """An engine may take two orders in any order. Seen failing without `Session._sizing`, and without the shield."""
    session, sandbox = make(tmp_path, Size(80, 24))
    one, two = Eyes(Size(80, 24)), Eyes(Size(80, 24))
    session.add(one)
    session.add(two)
    sandbox.delays = [0.05, 0.0]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.resize, one, Size(70, 20))
        await anyio.sleep(0.01)
        tasks.start_soon(session.resize, two, Size(60, 20))
    assert sandbox.sizes == [Size(70, 20), Size(60, 20)]
    with anyio.move_on_after(0.01):
        await session.redraw()
    assert sandbox.sizes[-2:] == [Size(59, 20), Size(60, 20)], "whoever asked for it has left"


async def test_a_storm_of_sizes_is_no_storm_for_the_program(tmp_path: Path) -> None:
    """Seen failing without `_SIZE_PAUSE`."""
    session, sandbox = make(tmp_path, Size(80, 24))
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    viewer = SocketViewer(writer, size=Size(80, 24))
    session.add(viewer)
    with theirs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fit, viewer, session)
            for columns in range(100, 200):
                viewer.resize(Size(columns, 24))
                await anyio.sleep(0.001)
            with anyio.fail_after(5):
                while sandbox.sizes[-1] != Size(199, 24):
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert len(sandbox.sizes) < 50
    writer.close()


async def test_plain_runs_have_no_size(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path)
    viewer = Eyes(Size(80, 24))
    session.add(viewer)
    await session.resize(viewer, Size(10, 10))
    await session.redraw()
    await session.remove(viewer)
    assert sandbox.sizes == []


async def test_what_two_people_type_is_not_torn_apart(tmp_path: Path) -> None:
    session, sandbox = make(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.write, b"aaaa")
        tasks.start_soon(session.write, b"bbbb")
        tasks.start_soon(session.close_stdin)
        await anyio.sleep(0.05)
        assert sandbox.written == [], "nothing can be written to a command that has not started"
        session.begun.set()
    assert b"".join(sandbox.written) == b"aaaabbbb<eof>"


async def test_ctrl_z_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a terminal sends it; a signal that cannot be sent ends nothing."""
    monkeypatch.setattr("moat.runtime.session._SHELL_PAUSE", 0.01)
    session, sandbox = make(tmp_path, tty=Size(80, 24))
    session.begun.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.continue_suspended)
        for number, typed in enumerate([b"a\x1a", b"\x1b[122;5u", b"\x1b[27;5;122~"], 1):
            await session.write(typed)
            with anyio.fail_after(5):
                while len(sandbox.signals) < number:
                    await anyio.sleep(0.005)
        await session.write(b"z\x1b[122;6u\x1b[122;5:3u")  # z, Ctrl-Shift-Z, and the key that is let go
        await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    assert sandbox.signals == [signal.SIGCONT] * 3


async def test_a_log_that_cannot_be_written_is_told_and_blocks_nothing(tmp_path: Path) -> None:
    """/dev/full is a disk without space; the run goes on and everybody learns of it."""
    told: list[str] = []
    path = tmp_path / "output.log"
    path.symlink_to("/dev/full")
    sandbox = Script()
    session = Session(sandbox, tty=None, log=OutputLog(tmp_path, limit=1 << 20), on_log_error=told.append)
    early = Eyes()
    session.add(early)
    sandbox.say(b"a", b"b")
    sandbox.end()
    await session.pump()
    assert early.text == b"ab"
    assert told == ["output.log: No space left on device"], "once"
    late = Eyes()
    session.add(late)
    for viewer in (early, late):
        assert viewer.told == ["the log of this run has a hole: output.log: No space left on device"]


class TestLocalViewer:
    async def test_reading(self) -> None:
        viewer = LocalViewer()
        viewer.offer(Output("stdout", b"a"))
        viewer.end()
        assert [output.data async for output in viewer.output()] == [b"a"]

    async def test_who_does_not_read_holds_the_command_up_until_it_waits_for_the_end(self) -> None:
        viewer = LocalViewer()
        viewer.offer(Output("stdout", b"x" * (2 << 20)))
        with anyio.move_on_after(0.1) as waited:
            await viewer.caught_up()
        assert waited.cancelled_caught
        viewer.let_go()
        with anyio.fail_after(1):
            await viewer.caught_up()
        for _ in range(100):
            viewer.offer(Output("stdout", b"y" * (1 << 20)))
        assert viewer._bytes <= 2 << 20, "what nobody reads is not kept for ever"

    async def test_a_reader_makes_room(self) -> None:
        viewer = LocalViewer()
        seen = 0

        async def write() -> None:
            for _ in range(64):
                viewer.offer(Output("stdout", b"x" * 65536))
                await viewer.caught_up()
            viewer.end()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            async for output in viewer.output():
                seen += len(output.data)
        assert seen == 64 * 65536
        assert viewer.patience is None


async def test_what_nobody_heard_is_kept_for_the_next_one(tmp_path: Path) -> None:
    """The newest 20, each once, in order; and nothing while somebody is there."""
    session, _ = make(tmp_path)
    for number in (0, 1, *range(25), 7):
        session.tell(f"word {number}")
    first, second = Eyes(), Eyes()
    session.add(first)
    session.add(second)
    numbers = [int(text.split()[1]) for text in first.told]
    assert numbers == [5, 6, *range(8, 25), 7]
    assert first.told[0].endswith(", nobody was attached)")
    session.tell("heard")
    assert second.told == ["heard"]
    assert first.told[-1] == "heard"
