"""Placeholders where they do not belong: what is said about it, and the search for them in bodies. Sans-IO.

A placeholder is worth nothing, but where it goes a credential was meant to go: a tool is set up wrongly, or
somebody is being fooled. `site_rules` looks at targets and fields; a body is looked at on its way.
"""

from __future__ import annotations

from collections.abc import Sequence

from moat.grants import InjectionRule, Rule
from moat.proxy.events import Denial, DeniedError
from moat.proxy.inject import CompiledRule
from moat.proxy.placeholders import finder
from moat.proxy.signing import Signer


def foreign(rule: Rule, where: str, *, sent: int | None = None) -> Denial:
    """A placeholder at a host that its grant is not for. `sent`: in a body, of which so much had left."""
    hosts = ", ".join(rule.hosts)
    part = "" if sent is None else " in its body"
    seen = f". {sent} bytes of the body had been sent; the server did not get its end" if sent else ""
    return Denial(
        code="credential-host",
        reason=f"the request to {where} carries the placeholder of grant {rule.credential}{part}, "
        f"which belongs to {hosts} over https only{seen}",
        rule=f"grant {rule.credential} is bound to {hosts}",
        hint="remove the credential from this request; it would not work there. "
        "If it is needed for this host, the user grants one that is bound to it (moat grant)",
    )


def misplaced(rule: InjectionRule, part: str, where: str) -> Denial:
    """A placeholder at its own host, in a part of the request that its grant is not for."""
    places = [
        f"as the header {rule.header}" if name == "header" else f"in the {name}" for name in rule.surfaces
    ]
    how = " or ".join(places)
    return Denial(
        code="credential-surface",
        reason=f"the request to {where} carries the placeholder of grant {rule.credential} in its {part}; "
        f"that credential goes out {how} only",
        rule=f"grant {rule.credential} is put {how}",
        hint=f"leave it out of the {part}"
        + ("; it is added to every request by itself" if "header" in rule.surfaces else ""),
    )


class BodyGuard:
    """Passes a body on as long as no placeholder is in it. What could begin one waits."""

    def __init__(self, strangers: Sequence[CompiledRule | Signer], where: str, *, percent: bool) -> None:
        self._rules = [rule.rule for rule in strangers]
        self._finder = finder(tuple(rule.placeholder for rule in strangers), percent=percent)
        self._where = where
        self._held = b""
        self._sent = 0

    def feed(self, data: bytes) -> bytes:
        """What can leave now. Raises DeniedError."""
        text = self._held + data if self._held else data
        for index, _, _ in self._finder.spans(text):
            raise DeniedError(foreign(self._rules[index], self._where, sent=self._sent))
        size = self._finder.held(text)
        leaving, self._held = (text[:-size], text[-size:]) if size else (text, b"")
        self._sent += len(leaving)
        return leaving

    def finish(self) -> bytes:
        """What was held back; the body is over."""
        rest, self._held = self._held, b""
        return rest
