"""A block of header fields: bytes, each field with a CRLF before it, as `http1` has validated them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from moat.proxy import grammar

Headers = tuple[tuple[bytes, bytes], ...]


def split_fields(block: bytes) -> Headers:
    """The fields of a block that the grammar has matched; values without white space around them."""
    fields = grammar.FIELD.findall(block)
    if b" \r" in block or b"\t\r" in block or block.endswith((b" ", b"\t")):
        return tuple([(name, value.rstrip(b" \t")) for name, value in fields])
    return tuple(fields)


def join_fields(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The reverse of `split_fields`. Raises ValueError when a field would break out of its line."""
    lines = [b"\r\n%b: %b" % field for field in headers]
    block = b"".join(lines)
    # An injected credential or a rewritten field with a line end in it would be a request of its own.
    if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines) or b"\x00" in block:
        raise ValueError("a header field holds a line end or a NUL")
    return block


def without(block: bytes, names: Collection[bytes]) -> bytes:
    """A block of fields without those with one of the (lower-case) names."""
    return join_fields(field for field in split_fields(block) if field[0].lower() not in names)
