"""Short ways through `needles`, held equal to the long ones."""

from __future__ import annotations

import base64

from hypothesis import example, given, settings, strategies as st

from moat.proxy.needles import Needles, needles

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
