"""The words of `network.rules`: hosts and path rules, as they may be written.

The proxy reads them again with its own, exact grammar (`moat.proxy.policy`), which this layer may not
import; here a mistake gets its place in the file.
"""

from __future__ import annotations

import re

from moat.errors import UsageError

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(
    rf"(?=.{{1,259}}$)(?:(?:\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{{0,4}}))?"
)
_RULE = re.compile(r"(?:allow|deny) (?:\*|[A-Z][A-Z-]{0,31}) (?P<path>/[!-~]*)")
_SEGMENT = re.compile(r"\*|\*\*|[A-Za-z0-9._~!$&'()+,=:@-]+")


def parse_host(text: str) -> str:
    """A host pattern in lower case: `h`, `*.h`, each with `:port` or without. Raises UsageError."""
    match = _HOST.fullmatch(text.lower())
    if match is None or int(match["port"] or 1) > 65535:
        raise UsageError(f"{text!r} is not a host, e.g. api.example.com, *.example.com or host:8443")
    return text.lower()


def parse_rule(text: str) -> str:
    """A rule `allow|deny METHOD /path`, unchanged. Raises UsageError."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a rule, e.g. `allow GET /repos/**` or `deny * /admin/**`")
    for segment in match["path"][1:].removesuffix("/").split("/"):
        if segment in {".", ".."} or (segment and not _SEGMENT.fullmatch(segment)):
            raise UsageError(
                f"{text!r}: {segment!r} is not a path segment; * and ** stand for whole segments"
            )
    if "//" in match["path"]:
        raise UsageError(f"{text!r} has an empty path segment")
    return text
