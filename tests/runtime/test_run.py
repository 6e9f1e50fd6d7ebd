"""Runs in the caller's event loop, through the public API, in real sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

import moat.runtime
from moat.errors import ArgumentError, ConfigError, GrantError, MoatError, StartError, UsageError
from moat.paths import Home, runtime_dir
from moat.runtime import BudgetConfig, HostRules, LocalRun, Mount, NetworkConfig, Question, Size, State, bwrap
from moat.runtime.request import RunRequest
from moat.runtime.run import hosted
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]


# A program with a run of its own.
OWNER = """
import asyncio, sys, moat.runtime

async def main():
    async with moat.runtime.start(['cat'], workspace=sys.argv[1], name='other', stdin=True) as run:
        print('ready', flush=True)
        print(await run.wait(), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    place = tmp_path / "ws"
    place.mkdir()
    return place


@pytest.fixture(autouse=True)
def _embedded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")


async def collect(run: LocalRun) -> tuple[bytes, bytes]:
    found = {"stdout": b"", "stderr": b""}
    async for chunk in run.output():
        found[chunk.stream] += chunk.data
    return found["stdout"], found["stderr"]


async def test_output_status_and_record(workspace: Path) -> None:
    async with moat.runtime.start(
        ["sh", "-c", "echo out; echo err >&2; pwd > where; exit 3"], workspace=workspace, name="first"
    ) as run:
        assert await collect(run) == (b"out\n", b"err\n")
        assert await run.wait() == 3
    (record,) = moat.runtime.list_runs()
    assert (record.name, record.state, record.exit_code) == ("first", State.FAILED, 3)
    assert record.error == "exit status 3"
    assert record.runtime == "embedded"
    assert record.started_at
    assert record.created_at <= record.started_at <= (record.ended_at or 0)
    assert (workspace / "where").read_text() == "/workspace\n"
    log = Home.from_environment().run(record.id) / "output.log"
    assert sorted(log.read_bytes().splitlines()) == [b"err", b"out"]
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}, (
        "sockets and directories are gone"
    )


async def test_output_is_complete_and_in_order(workspace: Path) -> None:
    async with moat.runtime.start(["seq", "300000"], workspace=workspace) as run:
        out, _ = await collect(run)
    assert out == b"".join(b"%d\n" % n for n in range(1, 300001))


async def test_the_command_waits_for_who_does_not_read(workspace: Path) -> None:
    script = "for i in $(seq 400); do head -c 65536 /dev/zero; echo $i > progress; done"
    async with moat.runtime.start(["sh", "-c", script], workspace=workspace) as run:
        progress = workspace / "progress"
        with anyio.fail_after(10):
            while not progress.exists():
                await anyio.sleep(0.05)
        await anyio.sleep(1)
        reached = int(progress.read_text() or 0)
        assert reached < 100, "about 1 MiB may wait in the program, and what pipes hold"
        assert await run.wait() == 0, "who waits for the end does not want the output"
        assert int(progress.read_text()) == 400


async def test_stdin(workspace: Path) -> None:
    async with moat.runtime.start(["cat"], workspace=workspace, stdin=True) as run:
        await run.write(b"hello ")
        await run.write(b"there")
        await run.close_stdin()
        assert await collect(run) == (b"hello there", b"")
        assert await run.wait() == 0


async def test_without_stdin_it_is_empty(workspace: Path) -> None:
    async with moat.runtime.start(["cat"], workspace=workspace) as run:
        with anyio.fail_after(10):
            assert await run.wait() == 0


async def test_a_terminal_has_its_size_from_the_start(workspace: Path) -> None:
    script = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.05; done"
    async with moat.runtime.start(["bash", "-c", script], workspace=workspace, tty=Size(91, 33)) as run:
        out = b""
        async for chunk in run.output():
            out += chunk.data
            if out == b"33 91\r\n":
                await run.resize(Size(120, 40))
        assert out == b"33 91\r\n40 120\r\n"


async def test_stop_asks_first(workspace: Path) -> None:
    script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    async with moat.runtime.start(["bash", "-c", script], workspace=workspace) as run:
        out = b""
        async for chunk in run.output():
            out += chunk.data
            if out == b"ready\n":
                run.ask_to_stop()
        assert out == b"ready\nbye\n"
        assert await run.wait() == 5
    record = moat.runtime.list_runs()[0]
    assert (record.state, record.exit_code, record.error) == (State.STOPPED, 5, "")


async def test_stop_kills_after_the_grace(workspace: Path) -> None:
    script = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done"
    async with moat.runtime.start(["bash", "-c", script], workspace=workspace) as run:
        assert await anext(aiter(run.output()))
        began = time.monotonic()
        assert await run.stop(grace=0.5) == 137
        assert 0.4 < time.monotonic() - began < 5


async def test_leaving_the_block_ends_the_run(workspace: Path) -> None:
    async with moat.runtime.start(["sleep", "1000"], workspace=workspace) as run:
        run_id = run.id
    record = moat.runtime.list_runs()[0]
    assert (record.id, record.state, record.exit_code) == (run_id, State.STOPPED, 143)


async def test_an_exception_in_the_block_ends_the_run_and_comes_out(workspace: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with moat.runtime.start(["sleep", "1000"], workspace=workspace):
            1 / 0  # noqa: B018 - it raises
    record = moat.runtime.list_runs()[0]
    assert (record.state, record.error) == (State.FAILED, "ZeroDivisionError: division by zero")


async def test_cancelling_ends_the_run(workspace: Path) -> None:
    with anyio.move_on_after(1):
        async with moat.runtime.start(["sleep", "1000"], workspace=workspace) as run:
            await run.wait()
    record = moat.runtime.list_runs()[0]
    assert (record.state, record.error) == (State.FAILED, "interrupted")
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}


async def test_signals(workspace: Path) -> None:
    async with moat.runtime.start(["sh", "-c", "echo ready; exec sleep 100"], workspace=workspace) as run:
        async for _ in run.output():
            await run.signal(2)
        assert await run.wait() == 130


async def test_two_runs_at_once(workspace: Path) -> None:
    async def one(text: str) -> bytes:
        async with moat.runtime.start(["echo", text], workspace=workspace) as run:
            return (await collect(run))[0]

    assert await asyncio.gather(one("a"), one("b")) == [b"a\n", b"b\n"]


async def test_env_mounts_and_identity(workspace: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("shared")
    async with moat.runtime.start(
        ["sh", "-c", "echo $MINE $MOAT_RUN_ID $HTTPS_PROXY; cat /mnt/data/file; id -u"],
        workspace=workspace,
        env={"MINE": "1", "HTTPS_PROXY": "http://elsewhere"},
        mounts=[Mount(data, "/mnt/data", read_only=True)],
    ) as run:
        out, err = await collect(run)
        assert out.decode().split("\n")[0] == f"1 {run.id} http://127.0.0.1:3128", err
        assert out.decode().split("\n")[1].startswith("shared")
        assert b"\n0\n" not in out, "never uid 0"


async def test_exchanges_are_recorded(workspace: Path) -> None:
    """Refused ones: nothing outside is contacted."""
    async with moat.runtime.start(
        ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://169.254.169.254/x?y=1"],
        workspace=workspace,
    ) as run:
        out, err = await collect(run)
        assert out == b"403", err
        (exchange,) = run.exchanges()
        assert (exchange.method, exchange.status) == ("GET", 403)
        assert exchange.denial
        assert exchange.denial.code == "address"
    assert run.exchanges() == [exchange], "also afterwards"


async def test_a_strict_policy_opens_what_it_lists(workspace: Path) -> None:
    network = NetworkConfig(policy="strict", rules=(HostRules("listed.test", ("allow GET /ok",)),))
    script = (
        "for u in listed.test/no other.test/; do curl -sS -o /dev/null -w '%{http_code} ' http://$u; done"
    )
    async with moat.runtime.start(["sh", "-c", script], workspace=workspace, network=network) as run:
        out, _ = await collect(run)
        assert out == b"403 403 "
        reasons = [exchange.denial.rule for exchange in run.exchanges() if exchange.denial]
    assert len(reasons) == 2


async def test_a_decider_of_ones_own(workspace: Path) -> None:
    """It lets one of three through, as far as a host that does not exist; the budget stops the fourth."""
    questions: list[Question] = []

    async def decide(question: Question) -> bool:
        questions.append(question)
        return "/yes" in question.url

    fetch = "for p in yes no a.b; do curl -s -o /dev/null -w '%{http_code}\\n' http://nowhere.test/$p; done"
    network = NetworkConfig(policy="ask", budgets=(BudgetConfig(host="nowhere.test", requests=2),))
    async with moat.runtime.start(
        ["sh", "-c", fetch], workspace=workspace, network=network, decider=decide
    ) as run:
        out, _ = await collect(run)
        assert out.split() == [b"502", b"403", b"403"]
        codes = [exchange.denial.code if exchange.denial else "" for exchange in run.exchanges()]
        assert codes == ["", "decider", "budget"]
    assert [(q.url, q.undecided) for q in questions] == [
        ("http://nowhere.test/yes", True),
        ("http://nowhere.test/no", True),
    ]
    denied = [
        entry.data["code"] for entry in moat.runtime.read_journal(run.id) if entry.event == "network.denied"
    ]
    assert sorted(denied) == ["budget", "decider"]
    with pytest.raises(UsageError, match="asks nothing"):
        await run.answer("nowhere.test", allow=True)


async def test_a_program_answers_questions(workspace: Path) -> None:
    """Without a decider each unknown host is one question, for whoever answers first."""
    fetch = "for h in a b a; do curl -s -o /dev/null -w '%{http_code}\\n' https://$h.test/$h; done"
    network = NetworkConfig(policy="ask")
    asked = []
    async with moat.runtime.start(["sh", "-c", fetch], workspace=workspace, network=network) as run:
        async for question in run.questions():
            asked.append((question.name, question.method, question.path))
            assert run.record.asks == (question.name,)
            assert await run.answer(question.host, allow=question.host == "a.test") == 1
        out, _ = await collect(run)
    assert asked == [("a.test", "GET", "/a"), ("b.test", "GET", "/b")]
    assert out.split() == [b"502", b"403", b"502"]


async def test_another_program_answers_questions(workspace: Path) -> None:
    fetch = "for h in a b; do curl -s -o /dev/null -w '%{http_code}\\n' https://$h.test/; done; sleep 1"
    network = NetworkConfig(policy="ask")
    async with (
        moat.runtime.start(["sh", "-c", fetch], workspace=workspace, network=network) as run,
        moat.runtime.attach(run.id) as other,
    ):
        asked = []
        async for question in other.questions():
            asked.append(question.name)
            allow = question.host == "a.test"
            assert await other.answer(question.host, allow=allow, scope="for", seconds=60) == 1
            with pytest.raises(MoatError, match="no request for"):
                await other.answer(question.host, allow=True, scope="once")
        out, _ = await collect(run)
    assert asked == ["a.test", "b.test"]
    assert out.split() == [b"502", b"403"]
    said = [e.data["by"] for e in moat.runtime.read_journal(run.id) if e.event == "ask.answered"]
    assert said == ["program", "program"]


async def test_missing_grants_are_listed_at_once(workspace: Path) -> None:
    with pytest.raises(GrantError) as caught:
        async with moat.runtime.start(
            ["true"], workspace=workspace, grants=["claude", "github", "anthropic"]
        ):
            pytest.fail("it must not start")
    assert str(caught.value) == "missing grant: anthropic\nmissing grant: github"
    assert caught.value.hint == "run `moat grant anthropic`\nrun `moat grant github`"
    record = moat.runtime.list_runs()[0]
    assert record.state is State.FAILED
    assert record.error.startswith("missing grant: anthropic")


async def test_what_cannot_start_says_why_and_leaves_nothing(workspace: Path, home: Path) -> None:
    state = home / ".moat"
    state.mkdir(exist_ok=True)
    refused = [
        {"workspace": workspace / "none"},
        {"workspace": home},
        {"workspace": state},
        {"workspace": Path("/")},
        {"workspace": workspace, "name": "No Name"},
        {"workspace": workspace, "runtime": "gvisor"},
        {"workspace": workspace, "mounts": [Mount(state, "/mnt")]},
        {"workspace": workspace, "mounts": [Mount(workspace / "none", "/mnt")]},
        {"workspace": workspace, "mounts": [Mount(workspace, "/workspace")]},
        {"workspace": workspace, "env": {"A": 1}},
        {"workspace": workspace, "env": {"A=B": "C"}},
        {"workspace": workspace, "env": {"": "C"}},
    ]
    for options in refused:
        with pytest.raises(UsageError):
            async with moat.runtime.start(["true"], **options):
                pytest.fail("it must not start")
    assert moat.runtime.list_runs() == []


async def test_words_that_linux_does_not_hand_over(workspace: Path, home: Path) -> None:
    """A long value was an exit status of 1, a long word a hint about rights; one that is no text a UnicodeError."""
    long, half = "x" * 131_072, "\ud800"
    for wrong, argv, options in (
        (r"argv\[1\] has 131072 bytes", ["echo", long], {}),
        (r"env\['A'\] has 131074 bytes", ["true"], {"env": {"A": long}}),
        ("text without NUL", ["echo", half], {}),
        ("'A' cannot be set", ["true"], {"env": {"A": half}}),
        ("is not a directory", ["true"], {"workspace": workspace / ("x" * 5000)}),
        ("no such file", ["true"], {"mounts": [Mount(workspace / ("x" * 5000), "/mnt")]}),
        ("neither NUL nor half", ["true"], {"workspace": workspace / half}),
    ):
        with pytest.raises(UsageError, match=wrong):
            async with moat.runtime.start(argv, **{"workspace": workspace, **options}):
                pytest.fail("it must not start")
    assert not (home / ".moat").exists()
    async with moat.runtime.start(["printf", "%s", "a\udcffé", long[2:]], workspace=workspace) as run:
        out, _ = await collect(run)
    assert out == b"a\xff\xc3\xa9" + b"x" * 131_070


async def test_what_a_run_is_told_and_cannot_be(workspace: Path) -> None:
    """A size that was none broke the socket at the next viewer, a grace that was none ended the block."""
    network = NetworkConfig(policy="ask")
    async with (
        moat.runtime.start(["cat"], workspace=workspace, stdin=True, network=network) as run,
        moat.runtime.attach(run.id) as other,
    ):
        for each in (run, other):
            for wrong, call in (
                ("data must be bytes", lambda each=each: each.write("text")),
                ("size must be Size, not tuple", lambda each=each: each.resize((80, 24))),
                ("number must be a signal", lambda each=each: each.signal(65)),
                ("number must be a signal", lambda each=each: each.signal("TERM")),
                ("grace must be float", lambda each=each: each.stop("5")),
                ("host must be str", lambda each=each: each.answer(5, allow=True)),
                ("allow must be bool", lambda each=each: each.answer("a.test", allow="no")),
                ("scope must be", lambda each=each: each.answer("a.test", allow=True, scope="ever")),
                ("seconds must be at least 1", lambda each=each: each.answer("a", allow=True, scope="for")),
            ):
                with pytest.raises(ArgumentError, match=wrong):
                    await call()
        for wrong, command in (
            ("argv must be a list, not str", "true"),
            (r"argv\[0\] must be str", (5,)),
            ("text without NUL", ("a\0b",)),
        ):
            with pytest.raises(UsageError, match=wrong):
                await run.execute(command)
        with pytest.raises(UsageError, match="not paused"):
            await run.resume()
        with pytest.raises(ArgumentError, match="size must be Size or None"):
            async with moat.runtime.attach(run.id, size=(80, 24)):
                pytest.fail("nothing to attach with")
        assert run.record.state is State.RUNNING
        await run.write(b"text")
        await other.close_stdin()
        assert await collect(run) == (b"text", b"")
    for look in (moat.runtime.read_journal, moat.runtime.verify_journal):
        with pytest.raises(ArgumentError, match="run must be str"):
            look(None)


@pytest.mark.parametrize("grace", [-1, float("nan")])
async def test_no_time_left_to_stop_in_is_none(workspace: Path, grace: float) -> None:
    """As of `deadline - time.monotonic()`; it came out of the block as an error, and the run had no status."""
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    async with moat.runtime.start(["bash", "-c", script], workspace=workspace) as run:
        assert await anext(aiter(run.output()))
        assert await run.stop(grace) == 137


@pytest.mark.parametrize("words", ["--ro-bind\0/usr/share\0/var", "--cap-add\0ALL"])
async def test_no_value_is_an_option_of_the_sandbox(workspace: Path, words: str) -> None:
    """A program may pass on what others wrote. Seen with /usr/share in place of /var, and with all capabilities."""
    look = ["sh", "-c", "ls /var; grep CapEff /proc/self/status"]
    with pytest.raises(UsageError, match="'A' cannot be set") as refused:
        async with moat.runtime.start(look, workspace=workspace, env={"A": f"b\0{words}"}) as run:
            pytest.fail((await collect(run))[0].decode())
    assert "NUL" in str(refused.value.hint)
    with pytest.raises(UsageError, match="NUL"):
        async with moat.runtime.start(["echo", f"b\0{words}"], workspace=workspace):
            pytest.fail("it must not start")
    arguments = bwrap.Arguments()
    with pytest.raises(StartError, match="--setenv"):
        arguments.add("--setenv", "A", f"b\0{words}")
    assert arguments.words == []


async def test_a_path_is_a_word(workspace: Path) -> None:
    async with moat.runtime.start([Path("/bin/echo"), Path("a")], workspace=workspace) as run:
        assert await collect(run) == (b"a\n", b"")


async def test_a_bad_rule_is_a_configuration_error(workspace: Path) -> None:
    network = NetworkConfig(rules=(HostRules("*.*.bad", ()),))
    with pytest.raises(ConfigError, match="bad"):
        async with moat.runtime.start(["true"], workspace=workspace, network=network):
            pytest.fail("it must not start")


async def test_a_command_that_is_not_there(workspace: Path) -> None:
    async with moat.runtime.start(["no-such-command-here"], workspace=workspace) as run:
        _, err = await collect(run)
        assert await run.wait() == 127
        assert b"no-such-command-here" in err


async def test_attaching_to_a_run_of_another_process(workspace: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(workspace)], stdout=subprocess.PIPE)
    assert owner.stdout
    try:
        assert await anyio.to_thread.run_sync(owner.stdout.readline) == b"ready\n"
        with anyio.fail_after(20):
            async with moat.runtime.attach("other") as run:
                await run.write(b"typed\n")
                async for chunk in run.output():
                    assert chunk.data == b"typed\n"
                    break
                assert run.exchanges() == []
                await run.close_stdin()
                assert await run.wait() == 0
                assert run.record.state is State.STOPPED
        assert await anyio.to_thread.run_sync(owner.stdout.readline) == b"0\n"
    finally:
        owner.kill()
        owner.communicate()


async def test_much_is_written_to_a_run_of_another_process(workspace: Path) -> None:
    """Of more than a frame holds, nothing arrived."""
    size = 20_000_000
    async with moat.runtime.start(["wc", "-c"], workspace=workspace, name="other", stdin=True) as run:
        async with moat.runtime.attach("other") as other:
            with anyio.fail_after(20):
                await other.write(bytes(size))
                await other.close_stdin()
                assert await run.wait() == 0
            assert [chunk.data async for chunk in other.output()] == [b"%d\n" % size]


async def test_a_run_with_as_many_words_as_linux_allows_is_reached(workspace: Path) -> None:
    """Its record went over the control socket in a frame that was refused as too large."""
    command = ["sh", "-c", "sleep 60", *(["\x01" * 120_000] * 15)]
    async with moat.runtime.start(command, workspace=workspace, name="other") as run:
        async with moat.runtime.attach("other") as other:
            assert other.record.argv == tuple(command)
            with anyio.fail_after(20):
                assert await other.stop() == 143
        assert await run.wait() == 143


async def test_who_gives_up_attaching_leaves_no_connection(workspace: Path) -> None:
    """A supervisor that stands still answers nothing; a program that tries again and again ran out of files."""
    async with moat.runtime.start(["cat"], workspace=workspace, name="other", stdin=True) as run:
        place = Path(run.record.socket)
        place.rename(place.with_name("own.sock"))
        left = asyncio.Event()

        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            left.set()

        async with await asyncio.start_unix_server(say_nothing, place):
            with anyio.move_on_after(0.2) as patience:
                async with moat.runtime.attach("other"):
                    pytest.fail("nobody has answered")
            assert patience.cancelled_caught
            gc.disable()
            try:
                with anyio.fail_after(5):
                    await left.wait()
            finally:
                gc.enable()


async def test_who_comes_while_the_supervisor_is_busy_is_let_in(workspace: Path) -> None:
    """As from twenty `moat exec` at once: the kernel refused the eighteenth."""
    async with moat.runtime.start(["cat"], workspace=workspace, name="other", stdin=True) as run:
        with contextlib.ExitStack() as open_ones:
            for _ in range(100):  # and no turn of the loop
                guest = open_ones.enter_context(socket.socket(socket.AF_UNIX))
                guest.settimeout(5)
                guest.connect(run.record.socket)
            async with moat.runtime.attach("other") as other:
                assert other.record.state is State.RUNNING


async def test_one_task_reads_and_another_stops(workspace: Path) -> None:
    """It was a RuntimeError of the stream, and what the reader had coming went to nobody."""
    script = "for i in $(seq 5); do echo $i; sleep 0.1; done; sleep 100"
    async with (
        moat.runtime.start(["sh", "-c", script], workspace=workspace) as run,
        moat.runtime.attach(run.id) as other,
    ):
        seen = []

        async def read() -> None:
            async for chunk in other.output():
                seen.append(chunk.data)  # noqa: PERF401 - others look at it meanwhile

        with anyio.fail_after(20):
            reader = asyncio.create_task(read())
            waiting = [asyncio.create_task(other.wait()) for _ in range(2)]
            while b"".join(seen) != b"1\n2\n3\n4\n5\n":
                await asyncio.sleep(0.05)
            with pytest.raises(UsageError, match="another task"):
                await anext(aiter(other.output()))
            assert await other.stop() == 143
            assert await asyncio.gather(*waiting) == [143, 143]
            await reader
        for call in (other.write(b"x"), other.close_stdin(), other.signal(2), other.resize(Size(1, 1))):
            await call  # as of a run of one's own
        assert await other.stop() == 143
        assert [chunk async for chunk in other.output()] == []
        with pytest.raises(MoatError, match="has ended"):
            await other.answer("a.test", allow=True)


async def test_who_stops_while_reading_goes_on_to_the_end(workspace: Path) -> None:
    script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    async with (
        moat.runtime.start(["bash", "-c", script], workspace=workspace) as run,
        moat.runtime.attach(run.id) as other,
    ):
        async for chunk in other.output():
            assert chunk.data == b"ready\n"
            assert await other.stop() == 5
        assert other.record.state is State.STOPPED


async def test_a_screen_that_was_there_before_is_shown(workspace: Path) -> None:
    """Of a command at a terminal, the first output that was seen was what came next."""
    async with moat.runtime.start(
        ["sh", "-c", "echo before; cat"], workspace=workspace, tty=Size(80, 24)
    ) as run:
        async for chunk in run.output():
            if b"before" in chunk.data:
                break
        async with moat.runtime.attach(run.id, size=Size(80, 24)) as other:
            seen = b""
            with anyio.fail_after(10):
                async for chunk in other.output():
                    seen += chunk.data
                    if b"before" in seen:
                        break


async def test_a_run_whose_owner_is_killed_says_so(workspace: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(workspace)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        assert await anyio.to_thread.run_sync(owner.stdout.readline) == b"ready\n"
        async with moat.runtime.attach("other") as run:
            owner.kill()
            with anyio.fail_after(20), pytest.raises(StartError, match="the supervisor was killed"):
                await run.wait()
            assert run.record.state is State.LOST
            assert await run.stop() is None


async def test_stopping_a_run_of_another_process(workspace: Path) -> None:
    async with moat.runtime.start(["sleep", "1000"], workspace=workspace, name="mine") as run:
        async with moat.runtime.attach("mine") as watcher:
            assert await watcher.stop() == 143
        assert await run.wait() == 143


async def test_waiting_for_a_run_that_was_stopped_before_it_began(workspace: Path) -> None:
    """As when SIGTERM reaches a supervisor while it builds an image."""
    run = LocalRun(RunRequest(argv=("touch", "ran"), workspace=workspace), Home.from_environment())
    with pytest.raises(StartError, match="stopped before the command had started"):
        async with hosted(run, b"", lambda _: run.ask_to_stop()):
            pytest.fail("it must not be ready")
    assert moat.runtime.list_runs()[0].state is State.STOPPED
    assert not (workspace / "ran").exists()
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}


async def test_a_full_disk_closes_the_network_and_says_so(workspace: Path, home: Path) -> None:
    """The trace cannot be written: the proxy answers 503, the agent goes on, the run is recorded."""
    script = (
        "sleep 0.5; curl -s -o /dev/null http://169.254.169.254/a; sleep 1;"
        " curl -s -w '%{http_code}' -o answer http://169.254.169.254/b; cat answer"
    )
    async with moat.runtime.start(["sh", "-c", script], workspace=workspace) as run:
        trace = Home.from_environment().run(run.id) / "network.jsonl"
        trace.unlink()
        assert run._gateway
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, run._gateway._writer._fd)
        os.close(full)
        out, _ = await collect(run)
        assert out.startswith(b"503")
        assert b"No space left" in out
        assert await run.wait() == 0
    assert moat.runtime.list_runs()[0].state is State.STOPPED


async def test_a_part_that_breaks_ends_the_run(workspace: Path) -> None:
    """The proxy crashed: the sandbox is gone before anything else, and the record names the part."""

    async def crash() -> None:
        raise RuntimeError("out of luck")

    beat = workspace / "beat"
    with pytest.raises(RuntimeError, match="out of luck"):  # noqa: PT012 - a block
        async with moat.runtime.start(
            ["sh", "-c", "while :; do date +%N > beat; sleep 0.02; done"], workspace=workspace
        ) as run:
            while not beat.exists():
                await anyio.sleep(0.02)
            assert run._gateway
            run._gateway.egress._start("proxy", crash)
            await run.wait()
    record = moat.runtime.list_runs()[0]
    assert (record.state, record.error) == (State.FAILED, "proxy failed: out of luck")
    last = beat.read_text()
    await anyio.sleep(0.2)
    assert beat.read_text() == last


def test_importing_the_api_is_free() -> None:
    script = (
        "import sys, moat.runtime; "
        "print([m for m in ('asyncio', 'anyio', 'ssl', 'cryptography', 'aiohttp', 'ruamel', 'json') "
        "if m in sys.modules]); moat.runtime.start; print('moat.runtime.run' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nTrue\n"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = moat.runtime.nothing
    assert set(moat.runtime.__all__) == set(moat.runtime._HOMES)


def test_the_example(workspace: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            REPOSITORY / "examples/run_in_sandbox.py",
            "--runtime",
            "embedded",
            "--workspace",
            workspace,
            "--",
            "sh",
            "-c",
            "echo hello; curl -s http://169.254.169.254/ -o /dev/null; exit 4",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    assert done.stdout == "hello\n"
    assert "GET http://169.254.169.254/: " in done.stderr
