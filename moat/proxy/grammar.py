"""HTTP/1.1 grammar as named patterns. Nothing else may enter this file.

Every repetition of a set is possessive (`++`, `*+`), and every group that repeats begins with a byte that
cannot follow it: a byte is looked at once or twice, so no input makes matching slow. Groups are not
possessive: before CPython 3.11.4 `re` does not go back when one fails in its middle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]"  # VCHAR, obs-text, SP, HTAB
_VCHAR = rb"[\x21\x22\x24-\x7e]"  # without `#`: a fragment never belongs in a request (RFC 9112 §3.2)
_LINES = (
    rb"(?:\r\n" + _TCHAR + rb"++:" + _VALUE + rb"*+)*"
)  # header fields, each with the CRLF in front of it

# One empty line before a request is tolerated (RFC 9112 §2.2): old clients end a POST with an extra CRLF.
REQUEST_START = re.compile(rb"(?:\r\n)?(" + _TCHAR + rb"++) (" + _VCHAR + rb"++) HTTP/1\.([01])(?=\r\n)")
FIELDS = re.compile(_LINES)  # of a request
# The space before an empty reason is often missing; nobody reads that in two ways.
RESPONSE = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (" + _VALUE + rb"*+))?(" + _LINES + rb")\r\n\r\n"
)
FIELD = re.compile(rb"\r\n([^:]++):[ \t]*+([^\r]*+)")  # inside what _LINES has matched
FIELD_TEXT = re.compile(r"\r\n([^:]++):[ \t]*+([^\r]*+)")  # the same, decoded
FIELD_LINE = re.compile(rb"(" + _TCHAR + rb"++):[ \t]*+(" + _VALUE + rb"*+)")


def fields_named(names: Iterable[bytes], *, also: bytes = b"") -> re.Pattern[bytes]:
    """Fields with one of the lower-case names, inside what _LINES has matched: groups name and value.

    `also` is a pattern for more names. Sorted by first letter, because that is how `re` is quick to say no.
    """
    by_letter: dict[bytes, list[bytes]] = {}
    for name in sorted(names):
        by_letter.setdefault(name[:1], []).append(re.escape(name[1:]))
    branches = [
        b"[%b%b](?i:%b)" % (re.escape(letter), re.escape(letter.upper()), b"|".join(rests))
        for letter, rests in by_letter.items()
    ]
    return re.compile(rb"\r\n(" + b"|".join([*branches, *filter(None, [also])]) + rb"):[ \t]*+([^\r\n]*+)")


# What a proxy has to read of a head; `http1` knows what for. Alternatives (RFC 7838, HTTP/3 mostly) lead
# around it, and do not pass.
SPECIAL = fields_named(
    (
        b"alt-svc", b"alt-used", b"alternate-protocol", b"connection", b"content-length", b"content_length",
        b"content-type", b"content-encoding", b"connect-content-encoding", b"expect", b"grpc-encoding",
        b"host", b"http2-settings", b"keep-alive", b"te", b"trailer", b"transfer-encoding",
        b"transfer_encoding", b"upgrade",
    ),
    also=rb"[Pp](?i:roxy-)" + _TCHAR + rb"*+",
)  # fmt: skip

TOKEN = re.compile(_TCHAR + rb"++")
UPGRADE = re.compile(_TCHAR + rb"++(?:/" + _TCHAR + rb"++)?")
DIGITS = re.compile(rb"[0-9]{1,19}+")  # Content-Length; 19 digits hold every 63-bit number
ABSOLUTE = re.compile(rb"(https?)://([^/?]++)([/?].*+)?", re.IGNORECASE)
AUTHORITY = re.compile(rb"(?:\[[^/?@\[\]]++\]|[^/?@\[\]:]++):[0-9]{1,5}+")

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSION = rb";" + _TCHAR + rb"++(?:=(?:" + _TCHAR + rb"++|" + _QUOTED + rb"))?"
PLAIN_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8}+)\r\n")
# BWS around `;` and `=` is legal and only seen in attacks; it is not accepted.
CHUNK = re.compile(rb"([0-9A-Fa-f]++)((?:" + _EXTENSION + rb")*)")

REQUEST_LINE = re.compile(rb"(" + _TCHAR + rb"++) (" + _VCHAR + rb"++) HTTP/1\.[01]")
STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9][0-9](?: " + _VALUE + rb"*+)?")
VERSION = re.compile(rb"HTTP/[0-9]+\.?[0-9]*\Z")
# What may stand nowhere in a head: a control byte, or a line end that is not CRLF.
ODD = re.compile(rb"(?<!\r)\n|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
