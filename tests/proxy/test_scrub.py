"""Scrubbing: secrets split everywhere, nothing else changed, nothing delayed, nothing unseen."""

from __future__ import annotations

import base64
import gzip
import itertools
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, strategies as st

from moat.proxy.limits import Limits
from moat.proxy.needles import Needles, _spellings
from moat.proxy.scrub import (
    BodyScrubber,
    Scrubber,
    UnreadableBodyError,
    mask,
    scrub_headers,
)

LIMITS = Limits()
SECRET = b"sk-ant-oat01-SECRETSECRET"
OTHER = b"dXNlcjpzay1hbnQ"
TEXT = b"data: {" + SECRET + b"}\n\ndata: sk-ant-oat01-SECRET sk-ant " + OTHER + OTHER + b" end\n\n"
CLEAN = TEXT.replace(SECRET, b"*" * len(SECRET)).replace(OTHER, b"*" * len(OTHER))


def stream(parts, secrets=(SECRET, OTHER)) -> bytes:
    scrubber = Scrubber(secrets)
    return b"".join([scrubber.feed(part) for part in parts]) + scrubber.finish()


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def body(encoding: bytes, parts, secrets=(SECRET, OTHER), limits=LIMITS) -> bytes:
    scrubber = BodyScrubber(secrets, ((b"Content-Encoding", encoding),), limits)
    out = b"".join(itertools.chain.from_iterable(scrubber.feed(part) for part in parts))
    return out + scrubber.finish()


def test_secrets_split_everywhere():
    assert stream([TEXT]) == CLEAN
    assert stream([bytes([byte]) for byte in TEXT]) == CLEAN
    for first in range(len(TEXT)):
        for second in range(first, len(TEXT), 7):
            assert stream([TEXT[:first], TEXT[first:second], TEXT[second:]]) == CLEAN


def test_kinds_of_buffers():
    assert stream([bytearray(TEXT[:20]), memoryview(TEXT)[20:]]) == CLEAN


def test_only_the_start_of_a_secret_is_held_back():
    scrubber = Scrubber([SECRET])
    event = b"event: ping\ndata: {}\n\n"
    assert scrubber.feed(event) == event
    assert scrubber.feed(event + b"sk-an") == event
    assert scrubber.feed(b"other") == b"sk-another"
    assert scrubber.feed(b"x" + SECRET[:-1]) == b"x"
    assert scrubber.feed(SECRET[-1:] + b"y") == b"*" * len(SECRET) + b"y"
    assert scrubber.feed(b"s") == b""
    assert scrubber.finish() == b"s"
    assert scrubber.finish() == b""


def test_nothing_is_copied_without_secrets():
    data = b"x" * 1000
    assert Scrubber([]).feed(data) is data
    assert Scrubber([b""]).feed(data) is data
    assert Scrubber([SECRET]).feed(data) is data


@pytest.mark.parametrize(
    ("secrets", "data", "expected"),
    [
        ([b"abcab"], b"abcabcab.", b"********."),
        ([b"aa"], b"aaaaa", b"*****"),
        ([b"abc", b"bcd"], b"abcd", b"****"),
        ([b"abcd", b"bc"], b"xbcx abcd", b"x**x ****"),
        ([b"ab", b"abab"], b"ababab", b"******"),
    ],
)
def test_overlapping_secrets_are_masked_whole(secrets, data, expected):
    assert stream([data], secrets) == expected
    assert stream([bytes([byte]) for byte in data], secrets) == expected


@given(
    st.lists(
        st.binary(min_size=1, max_size=4).map(lambda data: bytes(byte % 3 + 97 for byte in data)), max_size=3
    ),
    st.binary(max_size=40).map(lambda data: bytes(byte % 4 + 97 for byte in data)),
    st.lists(st.integers(0, 40)),
)
def test_a_stream_is_masked_like_the_whole(secrets, data, cuts):
    """The oracle masks every position that any occurrence of any secret covers."""
    covered = set()
    for secret in secrets:
        for start in range(len(data)):
            if data.startswith(secret, start):
                covered.update(range(start, start + len(secret)))
    expected = bytes(ord("*") if at in covered else byte for at, byte in enumerate(data))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    assert stream([data[start:end] for start, end in itertools.pairwise(edges)], secrets) == expected
    assert mask(data, secrets) == expected


def test_headers():
    headers = ((b"X-Echo", b"Bearer " + SECRET), (b"X-" + SECRET, b"y"), (b"Date", b"now"))
    stars = b"*" * len(SECRET)
    assert scrub_headers(headers, [SECRET]) == (
        (b"X-Echo", b"Bearer " + stars),
        (b"X-" + stars, b"y"),
        (b"Date", b"now"),
    )
    assert scrub_headers(headers, []) == headers


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        (b"", bytes), (b"identity", bytes), (b"gzip", gzip.compress), (b"X-Gzip", gzip.compress),
        (b"gzip, identity", gzip.compress), (b"deflate", zlib.compress), (b"Deflate", raw_deflate),
        (b"gzip", lambda data: gzip.compress(data[:30]) + gzip.compress(b"") + gzip.compress(data[30:])),
    ],
)  # fmt: skip
def test_encoded_bodies_are_opened(encoding, compress):
    wire = compress(TEXT)
    assert body(encoding, [wire]) == CLEAN
    assert body(encoding, [bytes([byte]) for byte in wire]) == CLEAN
    for cut in range(len(wire)):
        assert body(encoding, [wire[:cut], wire[cut:]]) == CLEAN


def test_a_flushed_event_comes_out_at_once():
    """Compressed SSE: what the server has flushed must not wait for more."""
    compressor = zlib.compressobj(wbits=31)
    scrubber = BodyScrubber([SECRET], ((b"content-encoding", b"gzip"),), LIMITS)
    for number in range(3):
        event = b"data: %d\n\n" % number
        wire = compressor.compress(event) + compressor.flush(zlib.Z_SYNC_FLUSH)
        assert b"".join(scrubber.feed(wire)) == event


@pytest.mark.parametrize(
    "encoding", [b"br", b"zstd", b"compress", b"gzip, gzip", b"br, gzip", b"aes128gcm", b"gzip;q=1"]
)
def test_unknown_encodings_are_reported(encoding):
    with pytest.raises(UnreadableBodyError, match="cannot be looked into"):
        BodyScrubber([SECRET], ((b"Content-Encoding", encoding),), LIMITS)
    with pytest.raises(UnreadableBodyError):
        BodyScrubber([SECRET], ((b"Content-Encoding", b"gzip"), (b"content-encoding", b"br")), LIMITS)


@pytest.mark.parametrize(
    ("encoding", "wire"),
    [
        (b"gzip", b"plain text"), (b"gzip", TEXT), (b"deflate", b"\xff" * 20), (b"gzip", gzip.compress(TEXT)[:-1]),
        (b"gzip", gzip.compress(TEXT)[:20]), (b"deflate", zlib.compress(TEXT)[:-4]), (b"deflate", b"x"),
        (b"gzip", gzip.compress(TEXT) + b"trailing"), (b"gzip", gzip.compress(TEXT)[:-8] + b"\0" * 8),
        (b"deflate", zlib.compress(TEXT) + b"x"), (b"gzip", gzip.compress(TEXT) + gzip.compress(b"x")[:5]),
    ],
)  # fmt: skip
def test_broken_compression_is_reported(encoding, wire):
    with pytest.raises(UnreadableBodyError):
        body(encoding, [wire])


def test_an_empty_body_may_be_called_gzip():
    """Answers to HEAD and 304 carry the header and no body."""
    assert body(b"gzip", []) == b""
    assert body(b"deflate", [b""]) == b""


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_a_bomb_comes_out_in_small_pieces(encoding):
    """32 MiB in 32 KiB; without the step bound one piece holds it all."""
    size = 32 << 20
    wire = gzip.compress(bytes(size), 9) if encoding == b"gzip" else zlib.compress(bytes(size), 9)
    scrubber = BodyScrubber([SECRET], ((b"Content-Encoding", encoding),), LIMITS)
    tracemalloc.start()
    try:
        total = largest = 0
        for piece in scrubber.feed(wire):
            total += len(piece)
            largest = max(largest, len(piece))
        total += len(scrubber.finish())
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert total == size
    assert largest <= LIMITS.decoded_step + len(SECRET)


def test_headers_of_a_decoded_body():
    headers = (
        (b"Content-Encoding", b"gzip"), (b"Content-Length", b"99"), (b"Content-MD5", b"x"), (b"X-Echo", SECRET),
        (b"Content-Type", b"text/plain"),
    )  # fmt: skip
    scrubber = BodyScrubber([SECRET], headers, LIMITS)
    assert scrubber.decoded
    assert scrubber.headers(headers) == ((b"X-Echo", SECRET), (b"Content-Type", b"text/plain"))
    plain = BodyScrubber([SECRET], headers[1:], LIMITS)
    assert not plain.decoded
    assert plain.headers(headers[1:2]) == headers[1:2]


BLOCKS = st.sampled_from([b"abcd", b"bcda", b"abcdabcd", b"k9k9k9k9", b"9k9k", b"/", b"-", b" "])


@given(
    secrets=st.lists(st.lists(BLOCKS, min_size=2, max_size=5).map(b"".join), min_size=1, max_size=3),
    noise=st.lists(st.sampled_from([b"%2F", b"%61", b"&amp;", b"\r\n", b"x", b"\\u0061", b"abcd", b"9k"])),
    data=st.data(),
)
def test_an_untouched_echo_is_told_without_reading_as_it_is_with(secrets, noise, data):
    quick, close = Needles(_all_spellings(secrets)), Needles(_all_spellings(secrets))
    close._untouched = {}
    spelled = [text for secret in secrets for text in (secret, base64.b64encode(secret))]
    pieces = data.draw(st.lists(st.sampled_from([*spelled, *noise, *(text[2:] for text in spelled)])))
    text = b"".join(pieces)
    assert _covered(quick.spans(text)) == _covered(close.spans(text))


def test_no_shortcut_where_one_echo_lies_over_another():
    """Without `_overlies`, the second is lost below the first."""
    needles = Needles(_all_spellings([b"abcdabcd"]))
    assert _covered(needles.spans(b"cd" + b"abcd" * 3)) == set(range(2, 14))


def _all_spellings(secrets: list[bytes]) -> list[Any]:
    return [spelling for secret in secrets for spelling in _spellings(secret)]


def _covered(spans: list[tuple[int, int]]) -> set[int]:
    return {at for start, end in spans for at in range(start, end)}
