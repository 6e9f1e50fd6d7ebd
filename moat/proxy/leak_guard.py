"""Placeholders where they do not belong: the search for them, and what is said about it. Sans-IO.

A placeholder is worth nothing, but where it goes a credential was meant to go: a tool is set up wrongly, or
somebody is being fooled. It is looked for in all the spellings in which a credential is looked for in answers
(`needles`). Heads are looked at by `site_rules`, bodies on their way.
"""

from __future__ import annotations

from collections.abc import Sequence

from moat.grants import InjectionRule, Rule
from moat.proxy.decoding import Decoder, UnreadableBodyError, decoder
from moat.proxy.events import Denial, DeniedError
from moat.proxy.fields import Headers
from moat.proxy.inject import CompiledRule
from moat.proxy.limits import Limits
from moat.proxy.needles import needles
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


def unreadable(where: str, why: str, rule: str, hint: str) -> Denial:
    """A body in which a placeholder would not be seen."""
    return Denial(
        code="body-coding",
        reason=f"the request to {where} cannot be searched for placeholders: {why}",
        rule=rule,
        hint=f"send the body as it is, or with gzip or deflate{hint}",
    )


class Strangers:
    """The placeholders that must not go to an authority."""

    def __init__(self, rules: Sequence[CompiledRule | Signer], where: str) -> None:
        self.where = where
        """`rules`: one or more, with placeholders."""
        self._rules = {rule.placeholder: rule.rule for rule in rules}
        self._needles = needles(tuple(self._rules))

    def denial(self, text: bytes, *, sent: int | None = None) -> Denial | None:
        """What is said of the first one in `text`. `sent` as for `foreign`."""
        if self._needles is None or not self._needles.spans(text):
            return None
        found = (rule for placeholder, rule in self._rules.items() if _holds(text, placeholder))
        return foreign(next(found, next(iter(self._rules.values()))), self.where, sent=sent)

    def begun(self, text: bytes) -> tuple[int, bool]:
        """Length of the end of `text` that could begin one, and whether it is so long that it has to wait."""
        return self._needles.held(text, self._needles.enough) if self._needles is not None else (0, False)


class BodyGuard:
    """Passes a body on as long as no placeholder is in it. What could begin one waits.

    But for its first characters: they tell nothing, and could end a message whose answer is waited for.
    """

    def __init__(self, strangers: Strangers) -> None:
        self._strangers = strangers
        self._text = b""  # the last that has come and may begin a placeholder
        self._left = 0  # how much of it has left already
        self._sent = 0

    def feed(self, data: bytes) -> bytes:
        """What can leave now. Raises DeniedError."""
        text = self._text + data if self._text else data
        denial = self._strangers.denial(text, sent=self._sent)
        if denial is not None:
            raise DeniedError(denial)
        size, waits = self._strangers.begun(text)
        free = len(text) - size
        leaving = text[self._left : free if waits else len(text)]
        self._text, self._left = text[free:], max(0, self._left - free) if waits else size
        self._sent += len(leaving)
        return leaving

    def finish(self) -> bytes:
        """What was held back; the body is over."""
        rest, self._text, self._left = self._text[self._left :], b"", 0
        return rest


class PackedGuard:
    """The same for a compressed body. It leaves as it came, each piece once it has been read."""

    def __init__(self, strangers: Strangers, opened: Decoder, limits: Limits) -> None:
        self._strangers = strangers
        self._decoder = opened
        self._limits = limits
        self._text = b""  # the end of what came out, if it may begin a placeholder
        self._size = 0  # of what came out
        self._sent = 0

    def feed(self, data: bytes) -> bytes:
        """`data`. Raises DeniedError."""
        limits = self._limits
        most = limits.inflation * (self._sent + len(data) + limits.decoded_step)
        try:
            for piece in self._decoder.feed(data):
                self._size += len(piece)
                if self._size > most:
                    raise self._refused(f"it decompresses to more than {limits.inflation} times its size")
                self._look_at(self._text + piece)
        except UnreadableBodyError as error:
            raise self._refused(str(error)) from None
        self._sent += len(data)
        return data

    def finish(self) -> bytes:
        """Nothing more; the body is over. Raises DeniedError when it was cut."""
        try:
            self._decoder.finish()
        except UnreadableBodyError as error:
            raise self._refused(str(error)) from None
        return b""

    def _look_at(self, text: bytes) -> None:
        denial = self._strangers.denial(text, sent=self._sent)
        if denial is not None:
            raise DeniedError(denial)
        size, _ = self._strangers.begun(text)
        self._text = text[len(text) - size :]

    def _refused(self, why: str) -> DeniedError:
        return DeniedError(unreadable(self._strangers.where, why, *_GUARDED))


def guard(headers: Headers, strangers: Strangers, limits: Limits) -> BodyGuard | PackedGuard:
    """What a body under `headers` goes through. Raises DeniedError when it could not be read."""
    codings = tuple(field for field in headers if not _is_plain(*field))
    try:
        opened = decoder(codings, limits.decoded_step)
    except UnreadableBodyError as error:
        raise DeniedError(unreadable(strangers.where, str(error), *_GUARDED)) from None
    return BodyGuard(strangers) if opened is None else PackedGuard(strangers, opened, limits)


_GUARDED = (
    "network.body_leaks: refuse",
    ". The user can let such bodies through: `body_leaks: pass` under `network:` in agent.yaml",
)


def _is_plain(name: bytes, value: bytes) -> bool:
    """What S3's clients call a coding are lines between parts of the body."""
    return name.lower() == b"content-encoding" and value.lower() == b"aws-chunked"


def _holds(text: bytes, placeholder: bytes) -> bool:
    sought = needles((placeholder,))
    return sought is not None and bool(sought.spans(text))
