"""The control protocol: frames at every split, and nonsense refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from moat.runtime import control
from moat.runtime.control import BrokenFrameError, Decoder, Frame

FRAMES = [
    (Frame.STDOUT, b"hello"),
    (Frame.STDERR, b""),
    (Frame.EXIT, b'{"exit_code": 0}'),
    (Frame.INPUT, b"\0"),
]
WIRE = b"".join(control.pack(kind, payload) for kind, payload in FRAMES)


@pytest.mark.parametrize("at", range(len(WIRE) + 1))
def test_frames_at_every_split(at: int) -> None:
    decoder = Decoder()
    assert [*decoder.feed(WIRE[:at]), *decoder.feed(WIRE[at:])] == FRAMES


@given(st.lists(st.tuples(st.sampled_from(Frame), st.binary(max_size=300))), st.integers(1, 50))
def test_any_frames_in_any_pieces(frames: list[tuple[Frame, bytes]], step: int) -> None:
    wire = b"".join(control.pack(kind, payload) for kind, payload in frames)
    decoder = Decoder()
    found = [f for at in range(0, len(wire), step) for f in decoder.feed(wire[at : at + step])]
    assert found == frames


@pytest.mark.parametrize(
    "data",
    [b"\x00\x00\x00\x00\x00", b"\xff\x00\x00\x00\x01a", b"\x02\x7f\xff\xff\xff", b"GET / HTTP/1.1\r\n"],
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenFrameError):
        list(Decoder().feed(data))


def test_sizes() -> None:
    _, payload = next(Decoder().feed(control.pack_size(80, 24)))
    assert control.unpack_size(payload) == (80, 24)
    with pytest.raises(BrokenFrameError):
        control.unpack_size(b"\0\0\0")


@pytest.mark.parametrize("payload", [b"", b"[]", b"nonsense", b"\xff"])
def test_only_objects_are_json(payload: bytes) -> None:
    with pytest.raises(BrokenFrameError):
        control.unpack_json(payload)


def test_hello() -> None:
    kind, payload = next(Decoder().feed(control.hello("view", lead=True, size=(80, 24))))
    assert kind is Frame.HELLO
    assert json.loads(payload) == {
        "role": "view",
        "lead": True,
        "size": [80, 24],
        "read_only": False,
        "steal": False,
    }
