"""Short ways through `needles`, held equal to the long ones."""

from __future__ import annotations

import base64

from hypothesis import example, given, settings, strategies as st

from moat.proxy.needles import _SUSPECT, Needles, _rough_alarms, needles

SECRETS = (b"sk-ant-SECRETSECRET", b"a b\nline\r\nbreaks}", b"p%41\\n&q;secret", b"0123456789", b"\r\nkey")


def _pieces(secret: bytes) -> list[bytes]:
    texts = (
        secret,
        base64.b64encode(secret),
        secret.hex().encode(),
        b" ".join(b"%d" % byte for byte in secret),
    )
    return [text[:size] for text in texts for size in (1, 2, 4, 7, 12, len(text))]


SPELLED = [piece for secret in SECRETS for piece in _pieces(secret)]
NOISE = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b"\0",
    b"}",
    b'"}',
    b"\xff",
    b"%",
    b"&#",
    b"\\",
    b"\\u00",
    b"x",
]
TEXTS = st.lists(st.sampled_from([*SPELLED, *NOISE]), max_size=12).map(b"".join)


@given(st.lists(st.sampled_from(SECRETS), min_size=1, max_size=3), TEXTS, st.integers(0, 8))
@example([SECRETS[4]], b"}\r\n", 0)
@example([SECRETS[0]], b"&#99;\n", 0)
@example([SECRETS[0]], b"s\n", 0)
@settings(max_examples=500)
def test_the_end_of_a_line_is_told_without_reading_as_it_is_with(secrets, text, enough):
    """Seen to fail without any of the three conditions of `_ends_for_good`."""
    found = needles(tuple(secrets))
    assert isinstance(found, Needles)
    size, kept = found.held(text, enough)
    closely = found._held_closely(text, enough) if text else (0, False)
    assert size == closely[0]
    assert kept == closely[1] or not size


# Escapes of every byte in every way, also cut short, between bytes that are no text.
ESCAPED = [
    form % value
    for value in range(256)
    for form in (b"%%%02x", b"%%%02X", b"\\u%04x", b"\\x%02X", b"\\%03o", b"&#%d;", b"&#x%x;", b"&#X0%X;", b"&amp;#%d")
] + [b"\\u{41}", b"\\U00000041", b"&#0065;"]  # fmt: skip
CUT = st.tuples(st.sampled_from(ESCAPED), st.integers(1, 10)).map(lambda cut: cut[0][: cut[1]])


@given(st.lists(CUT | st.binary(max_size=4), max_size=12).map(b"".join))
@settings(max_examples=300)
def test_no_suspect_is_missed_in_data_that_is_no_text(data):
    """Seen to fail without one of the bytes in `_ROUGHLY`, and without the case of the end."""
    _held_equal(data)


def test_no_escape_is_missed_in_data_that_is_no_text():
    for escape in ESCAPED:
        _held_equal(escape)
        _held_equal(b"\xff" + escape + b"\xff")


def _held_equal(data):
    """Each place that a look at every byte suspects is one that the quick search raises an alarm for."""
    noise = b"\xff" * 1000  # with fewer bytes for each escape nothing is searched: all is read closely
    for text in (noise + data, noise + data + noise):
        alarms = _rough_alarms(text)
        assert alarms is not None
        assert {at for at in range(len(text)) if _SUSPECT.match(text, at)} <= set(alarms)
