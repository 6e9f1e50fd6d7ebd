"""The reader of chunked bodies: views, blame, limits, speed. What is accepted and refused is in `corpus/chunked.txt`."""

from __future__ import annotations

import dataclasses
import itertools
import time

import pytest
from hypothesis import given, strategies as st

from moat.proxy.chunked import LAST_CHUNK, ChunkedReader, encode_chunk
from moat.proxy.head import MalformedError
from moat.proxy.limits import Limits

LIMITS = Limits()


def read(parts, *, limits=LIMITS, blame="client"):
    """Feed parts one after the other: (payload, trailers, unused rest, done)."""
    reader = ChunkedReader(limits, blame=blame)
    payload = b""
    for index, part in enumerate(parts):
        slices, consumed = reader.feed(part)
        payload += b"".join(slices)
        if reader.done:
            return payload, reader.trailers, part[consumed:] + b"".join(parts[index + 1 :]), True
        assert consumed == len(part)
    return payload, reader.trailers, b"", False


def test_blame_and_status():
    for blame, status in (("client", 400), ("upstream", 502)):
        with pytest.raises(MalformedError) as caught:
            read([b"x\r\n"], blame=blame)
        assert (caught.value.blame, caught.value.status) == (blame, status)


def test_slices_are_views_without_copies():
    data = bytearray(b"5\r\nhello\r\n")
    slices, _ = ChunkedReader(LIMITS, blame="client").feed(data)
    assert [bytes(piece) for piece in slices] == [b"hello"]
    data[3:8] = b"HELLO"
    assert bytes(slices[0]) == b"HELLO"


def test_a_huge_chunk_streams():
    reader = ChunkedReader(LIMITS, blame="client")
    reader.feed(b"7fffffffffffffff\r\n")
    slices, consumed = reader.feed(b"x" * 1_000_000)
    assert (len(slices[0]), consumed, reader.done) == (1_000_000, 1_000_000, False)
    assert "data" in repr(reader)


def test_limits_come_from_limits():
    small = dataclasses.replace(LIMITS, chunk_digits=2, fields=1)
    assert read([b"10\r\n" + b"x" * 16 + b"\r\n0\r\nA: b\r\n\r\n"], limits=small)[3]
    for wire in (b"100\r\n", b"100\r\n" + b"x" * 256 + b"\r\n", b"0\r\nA: b\r\nC: d\r\n\r\n"):
        with pytest.raises(MalformedError):
            read([wire], limits=small)


def test_encode_chunk():
    assert encode_chunk(b"") == b""
    assert encode_chunk(memoryview(b"x" * 16)) == b"10\r\n" + b"x" * 16 + b"\r\n"


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 400)), st.binary(max_size=5))
def test_what_we_encode_we_read(payloads, cuts, rest):
    wire = b"".join(map(encode_chunk, payloads)) + LAST_CHUNK + rest
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    parts = [wire[start:end] for start, end in itertools.pairwise(edges)]
    assert read(parts) == (b"".join(payloads), (), rest, True)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_are_read_alike_however_they_are_split(data, cut):
    def seen(parts):
        try:
            return read(parts)
        except MalformedError as error:
            return error.code

    assert seen([data]) == seen([data[:cut], data[cut:]]) == seen([bytes([byte]) for byte in data])


def test_whole_chunks_are_taken_quickly():
    """The path for plain, complete chunks against the one line by line, which an extension takes."""
    plain = b"".join(encode_chunk(b"x" * 200) for _ in range(20)) + LAST_CHUNK
    extended = plain.replace(b"c8\r\n", b"c8;x\r\n")
    rounds = [(_seconds_per_body(plain), _seconds_per_body(extended)) for _ in range(30)]
    quick, slow = (min(times) for times in zip(*rounds, strict=True))
    assert quick < slow


def _seconds_per_body(wire: bytes) -> float:
    started = time.process_time()
    for _ in range(50):
        ChunkedReader(LIMITS, blame="client").feed(wire)
    return time.process_time() - started
