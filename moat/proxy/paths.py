"""Paths as servers read them. Pure text.

Servers differ on percent-decoding, `//`, dot segments, `;parameters`, backslashes and letter width. Rather
than guess which one is behind a host, `readings` gives every path that some server would act on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from moat.regex import regex

_PLAIN = regex(r"/(?:[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9_~!$&'()*+,=:@.-]*+/?)*")
_BAD_PERCENT = regex(r"%(?![0-9A-Fa-f]{2})")
_PARAMETERS = regex(r";[^/]*")
_OCTET = regex(r"%([0-9A-Fa-f]{2})")
_MAX_DECODES = 3  # nothing honest is encoded even twice
_MAX_SHAPES = 16  # nothing honest has more than two
_MAX_SEGMENTS = 128  # honest paths have under 20; every reading is asked of every rule


class AmbiguousPathError(ValueError):
    """A path that has readings no rule can be asked about."""


def readings(target: str) -> tuple[str, ...]:
    """Every path (without query, beginning with `/`) that a server may take a request target for.

    Almost always one. Raises AmbiguousPathError for broken or endless percent-encoding, bytes that are not
    UTF-8 (overlong `/` and `.` among them), control characters, targets that are no path, and paths so deep,
    or of so many readings, that asking the rules about them would hold up the proxy.
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        raise AmbiguousPathError("the target is not a path")
    found = (path,) if _PLAIN.fullmatch(path) else tuple(_all_readings(path))
    if max(reading.count("/") for reading in found) > _MAX_SEGMENTS:
        raise AmbiguousPathError(f"it has more than {_MAX_SEGMENTS} segments")
    return found


def _all_readings(path: str) -> dict[str, None]:
    found: dict[str, None] = {}
    for decoded in _decodings(path):
        wide = unicodedata.normalize("NFKC", decoded)
        for text in (decoded, decoded.replace("\\", "/"), wide.replace("\\", "/")):
            for kept in (text, _PARAMETERS.sub("", text)):
                found.update(dict.fromkeys((kept, _resolve(kept))))
    return found


def _decodings(path: str) -> list[str]:
    """The path with unreserved characters decoded, then decoded whole, once and again until it is stable.

    What is done to it before (`_shapes`) decides where an encoded `..` leads.
    """
    texts = [_OCTET.sub(_decode_unreserved, path)]
    paths = _shapes((path,))
    for turn in range(_MAX_DECODES + 1):
        if not any("%" in each for each in paths):
            break
        if turn == _MAX_DECODES:
            raise AmbiguousPathError("it is percent-encoded again and again")
        paths = _shapes(map(_decoded, paths))
        texts += paths
    last = "".join(paths)
    if any(unicodedata.category(char) == "Cc" for char in last):
        raise AmbiguousPathError("an encoded control character")
    if _OCTET.search(unicodedata.normalize("NFKC", last)):  # nothing is left to decode but in that width
        raise AmbiguousPathError("percent signs of another width")
    if any(sign in last for sign in "?#"):
        raise AmbiguousPathError("an encoded question mark or number sign")
    return texts


def _decoded(path: str) -> str:
    if _BAD_PERCENT.search(path):
        raise AmbiguousPathError("a percent sign without two hexadecimal digits")
    try:
        return unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise AmbiguousPathError("percent-encoded bytes that are not UTF-8") from None


def _shapes(paths: Iterable[str]) -> list[str]:
    """With what servers do to a path before they decode it: slashes for backslashes, parameters taken off."""
    found = dict.fromkeys(each for path in paths for each in (path, path.replace("\\", "/")))
    found |= dict.fromkeys(_PARAMETERS.sub("", path) for path in tuple(found))
    if len(found) > _MAX_SHAPES:
        raise AmbiguousPathError("it can be read in too many ways")
    return list(found)


def _decode_unreserved(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return char if char.isascii() and (char.isalnum() or char in "-._~") else match[0].upper()


def _resolve(path: str) -> str:
    """Without empty and dot segments (RFC 3986 §5.2.4, and what `merge_slashes` does)."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in {"", "."}:
            kept.append(segment)
    return "/" + "/".join(kept)
