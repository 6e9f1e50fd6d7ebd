"""Happy eyeballs: which address of a name is connected to, and that nothing of the others is left.

Real sockets: an address that hangs is a listener whose queue is full, which drops what comes (SYN).
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import anyio
import pytest

from moat.proxy import Limits, UpstreamOptions, race
from moat.proxy.race import connect_first, interleaved
from moat.proxy.stream import StreamError, StreamTimeoutError, Watch
from tests.proxy.conftest import HouseMaker, tls_origin
from tests.proxy.peers import echo
from tests.proxy.test_exchange import API, get

pytestmark = pytest.mark.anyio
SIX, FOUR = "::1", "127.0.0.1"
LIMITS = replace(Limits(), dial_stagger=0.1, dial_timeout=5.0)


@contextlib.contextmanager
def listener(address: str, port: int = 0) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as sock:
        yield sock.getsockname()[1]


@contextlib.contextmanager
def silence(address: str, port: int) -> Iterator[None]:
    """A port at which nobody answers, not even with a refusal."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.bind((address, port))
        sock.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            filler.connect_ex((address, port))
        yield


@pytest.mark.parametrize(
    ("given", "order"),
    [
        (["4a", "4b"], ["4a", "4b"]),
        ([":a", "4a"], [":a", "4a"]),
        (["4a", ":a"], ["4a", ":a"]),
        ([":a", ":b", ":c", "4a", "4b"], [":a", "4a", ":b", "4b", ":c"]),
        (["4a", "4b", ":a"], ["4a", ":a", "4b"]),
        ([], []),
    ],
)
async def test_families_take_turns(given, order, anyio_backend):
    assert interleaved(given) == order


async def test_ipv6_is_used_when_it_answers(anyio_backend):
    with listener(SIX) as port, listener(FOUR, port):
        stream = await connect_first([SIX, FOUR], port, Watch(), LIMITS)
        assert stream.sock.getpeername()[0] == SIX
        await stream.aclose()


async def test_a_silent_ipv6_costs_a_moment(anyio_backend):
    """Without the race the dial would wait for the whole time-out of the first address."""
    with listener(FOUR) as port, silence(SIX, port):
        started = time.monotonic()
        stream = await connect_first([SIX, FOUR], port, Watch(), LIMITS)
        assert stream.sock.getpeername()[0] == FOUR
        assert 0.09 < time.monotonic() - started < 2
        await stream.aclose()


async def test_a_refused_address_costs_nothing(anyio_backend):
    limits = replace(LIMITS, dial_stagger=4.0)
    with listener(FOUR) as port:
        started = time.monotonic()
        stream = await connect_first([SIX, "127.0.0.9", FOUR], port, Watch(), limits)
        assert stream.sock.getpeername()[0] == FOUR
        assert time.monotonic() - started < 2
        await stream.aclose()


async def test_nobody_answers(anyio_backend):
    with listener(FOUR) as port:
        pass
    with pytest.raises(StreamError, match="refused"):
        await connect_first([SIX, FOUR], port, Watch(), LIMITS)
    with pytest.raises(StreamError, match="no address"):
        await connect_first([], port, Watch(), LIMITS)
    with silence(SIX, port), silence(FOUR, port), pytest.raises(StreamTimeoutError):
        await connect_first([SIX, FOUR], port, Watch(), replace(LIMITS, dial_timeout=0.4))


async def test_only_so_many_addresses_are_tried(anyio_backend, monkeypatch):
    tried = []

    async def connect(address, watch, *, timeout):
        tried.append(address)
        raise StreamError("connection refused")

    monkeypatch.setattr(race, "connect", connect)
    names = [f"2001:db8::{n:x}" for n in range(100)] + [f"192.0.2.{n}" for n in range(100)]
    with pytest.raises(StreamError):
        await connect_first(names, 443, Watch(), LIMITS)
    assert tried == [(name, 443) for name in interleaved(names)[: Limits().dial_addresses]]


async def test_who_answers_in_the_same_turn_is_let_go(anyio_backend, monkeypatch):
    """Seen to fail without the `abort` of the second winner."""
    made, both = [], anyio.Event()

    class Answer:
        aborted = False

        def abort(self):
            self.aborted = True

    async def connect(address, watch, *, timeout):
        made.append(Answer())
        if len(made) == 2:
            both.set()
        with anyio.CancelScope(shield=True):
            await both.wait()
        return made[-1] if address[0] == FOUR else made[0]

    monkeypatch.setattr(race, "connect", connect)
    winner = await connect_first([SIX, FOUR], 443, Watch(), replace(LIMITS, dial_stagger=0.0))
    assert [answer.aborted for answer in made] == [answer is not winner for answer in made]


async def test_losers_and_the_cancelled_leave_nothing(anyio_backend):
    """Cancelled at any moment of the race, also in the turn of the loop in which somebody wins."""
    watch = Watch()
    with listener(FOUR) as port, listener(SIX, port):
        warm = await connect_first([SIX, FOUR], port, watch, LIMITS)
        await warm.aclose()
        await anyio.sleep(0.05)
        files = len(os.listdir("/proc/self/fd"))
        limits = replace(LIMITS, dial_stagger=0.0)
        for turn in range(40):
            with anyio.move_on_after(turn * 0.00002):
                stream = await connect_first([SIX, FOUR, "127.0.0.2"], port, watch, limits)
                await stream.aclose()
        await anyio.sleep(0.1)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= files
        assert len(watch) == 0


def test_through_the_proxy(make: HouseMaker) -> None:
    """A name whose IPv6 address hangs is reached over IPv4, well before the dial's time-out."""
    with tls_origin(echo) as origin, silence(SIX, origin.port):

        async def resolver(host: str, port: int) -> list[str]:
            return [SIX, FOUR]

        options = UpstreamOptions(connect_to={API: ("both.test", origin.port)})
        with make(options=options, resolver=resolver) as house, house.tunnel() as wire:
            started = time.monotonic()
            wire.send(get())
            assert wire.message().status == 200
            assert time.monotonic() - started < 5
