"""Credentials in targets and bodies: placeholders counted and replaced where their grant allows. Sans-IO.

What is put in is written as the place asks: percent-encoded in path, query and forms, escaped in JSON, as it
is in any other body. What was put in is never read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from urllib.parse import quote_from_bytes, unquote_to_bytes

from moat.dataclass import dataclass
from moat.grants import Surface
from moat.proxy.events import Denial, DeniedError
from moat.proxy.inject import CompiledRule
from moat.proxy.leak_guard import unreadable
from moat.proxy.placeholders import Finder, finder


class Spelling(Enum):
    """How text is written in a body."""

    PLAIN = "plain"
    JSON = "json"
    FORM = "form"


@dataclass(frozen=True, slots=True)
class Binding:
    """What one placeholder stands for at one authority."""

    credential: str
    placeholder: bytes
    surfaces: frozenset[Surface]  # of path, query and body
    occurrences: int  # of one request, over all surfaces


def bindings_of(rules: Iterable[CompiledRule]) -> tuple[Binding, ...]:
    """The bindings of rules for one authority, without those that touch the header and frames only."""
    found: dict[bytes, Binding] = {}
    for compiled in rules:
        rule = compiled.rule
        surfaces: frozenset[Surface] = frozenset(rule.surfaces) - {"header", "websocket"}
        if not surfaces or not compiled.placeholder:
            continue
        held = found.get(compiled.placeholder, Binding("", b"", frozenset(), 0))
        found[compiled.placeholder] = Binding(
            rule.credential,
            compiled.placeholder,
            surfaces | held.surfaces,
            max(rule.occurrences, held.occurrences),
        )
    return tuple(found.values())


def spelling_of(content_type: bytes) -> Spelling | None:
    """How placeholders stand in a body of that type; None when nothing is looked for in it."""
    media = content_type.partition(b";")[0].strip(b" \t").lower()
    if media == b"application/json" or media.endswith(b"+json"):
        return Spelling.JSON
    if media == b"application/x-www-form-urlencoded":
        return Spelling.FORM
    # Its messages say how long they are.
    return None if media.startswith(b"application/grpc") else Spelling.PLAIN


def parts(target: bytes) -> tuple[tuple[Surface, bytes], tuple[Surface, bytes]]:
    """Path and query (with its `?`) of a request target in origin-form."""
    path, mark, query = target.partition(b"?")
    return ("path", path), ("query", mark + query)


def wanted_of(bindings: Iterable[Binding], target: bytes, *, body: bool) -> list[Binding]:
    """Those whose credentials a request may need. `body`: it has one, and what is in it is not known yet."""
    opened = unquote_to_bytes(target)
    return [
        binding
        for binding in bindings
        if binding.placeholder in opened or (body and "body" in binding.surfaces)
    ]


class Substitution:
    """What is put in one request, and how often it still may be."""

    def __init__(
        self,
        bindings: Sequence[Binding],
        secrets: Mapping[str, bytes],
        where: str,
        on_use: Callable[[str], None],
    ) -> None:
        """`secrets` by grant; `on_use` is told of a grant before its credential is put in, and may raise."""
        self._bindings = bindings
        self._secrets = secrets
        self._where = where
        self._on_use = on_use
        self._left = {binding.placeholder: binding.occurrences for binding in bindings}

    def target(self, target: bytes) -> bytes:
        """The target with credentials. Raises DeniedError."""
        return b"".join(self._part(surface, text) for surface, text in parts(target))

    def _part(self, surface: Surface, text: bytes) -> bytes:
        safe = ":@" if surface == "path" else ""
        filtered = self._text(surface, partial(quote_from_bytes, safe=safe), percent=True)
        return filtered.feed(text) + filtered.finish() if filtered is not None else text

    def body(self, spelling: Spelling) -> Substituted | None:
        """What a body goes through; None when no grant is for bodies."""
        return self._text("body", _WRITERS[spelling], percent=spelling is Spelling.FORM)

    def unreadable(self, why: str) -> Denial:
        """For a body in which a placeholder would stay what it is."""
        names = ", ".join(
            dict.fromkeys(each.credential for each in self._bindings if "body" in each.surfaces)
        )
        return unreadable(self._where, why, f"grant {names} is put in the body", "")

    def _text(self, surface: Surface, write: Callable[[bytes], str], *, percent: bool) -> Substituted | None:
        bound = [binding for binding in self._bindings if surface in binding.surfaces]
        if not bound:
            return None
        written = [write(self._secrets[binding.credential]).encode() for binding in bound]
        found_by = finder(tuple(binding.placeholder for binding in bound), percent=percent)
        return Substituted(found_by, written, lambda found: self._use([bound[index] for index in found]))

    def _use(self, found: Sequence[Binding]) -> None:
        """All that is in a piece at once: what is refused was not used."""
        for binding in found:
            left = self._left[binding.placeholder] = self._left[binding.placeholder] - 1
            if left < 0:
                raise DeniedError(_too_often(binding, self._where))
        for binding in found:
            self._on_use(binding.credential)


class Substituted:
    """Text that comes in pieces, with credentials for placeholders."""

    def __init__(
        self, finder: Finder, written: Sequence[bytes], on_use: Callable[[Sequence[int]], None]
    ) -> None:
        """`written`: what takes the place of each placeholder of `finder`. `on_use` may raise."""
        self._finder = finder
        self._written = written
        self._on_use = on_use
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can leave now: what could be the beginning of a placeholder waits. Raises DeniedError."""
        text = self._held + data if self._held else data
        leaving: list[bytes] = []
        at = 0
        spans = list(self._finder.spans(text))
        self._on_use([index for index, _, _ in spans])
        for index, start, end in spans:
            leaving += (text[at:start], self._written[index])
            at = end
        rest = text[at:] if at else text
        size = self._finder.held(rest)
        self._held = rest[len(rest) - size :]
        leaving.append(rest[: len(rest) - size] if size else rest)
        return b"".join(leaving)

    def finish(self) -> bytes:
        """What was held back; the text is over."""
        rest, self._held = self._held, b""
        return rest


def _escaped(secret: bytes) -> str:
    return json.dumps(secret.decode())[1:-1]


_WRITERS: Mapping[Spelling, Callable[[bytes], str]] = {
    Spelling.PLAIN: bytes.decode,
    Spelling.JSON: _escaped,
    Spelling.FORM: partial(quote_from_bytes, safe=""),
}


def _too_often(binding: Binding, where: str) -> Denial:
    most = "once" if binding.occurrences == 1 else f"{binding.occurrences} times"
    return Denial(
        code="credential-count",
        reason=f"the request to {where} carries the placeholder of grant {binding.credential} "
        f"more often than {most}",
        rule=f"grant {binding.credential} is put in a request {most} at most",
        hint="send it where the API wants it and nowhere else",
    )
