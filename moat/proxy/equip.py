"""What the rules of a run mean at one authority, worked out once. Pure; secrets come in as arguments.

`inject` decides and carries out for any headers. Most requests to a host differ only in fields that no rule
looks at, so the answer for the fields that matter is kept and used again: the same words, said once. A request
with a placeholder anywhere else, or with something that could decode to one, takes the plain way each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moat.grants import Credential
from moat.proxy import grammar
from moat.proxy.http1 import Headers, join_fields, split_fields
from moat.proxy.inject import CompiledRule, Plan, carry_out, make_plan

_KEPT = 32  # sets of fields remembered for an authority; clients have one or two
_OPAQUE = frozenset({b"accept-encoding", b"range", b"if-range", b"sec-websocket-extensions"})


class Equipped(NamedTuple):
    """A request with its credentials."""

    fields: bytes  # what goes upstream, each with a CRLF before it
    grants: tuple[str, ...] = ()
    secrets: tuple[bytes, ...] = ()  # what must never come back
    names: frozenset[bytes] = frozenset()  # lower-case header names that carry a credential


@dataclass(slots=True)
class Draft:
    """A plan for a request, and what came of it the last time."""

    plan: Plan
    credentials: Sequence[Credential] = ()
    done: Equipped | None = None


class Equipment:
    """Puts credentials on requests to one authority."""

    def __init__(self, rules: Sequence[CompiledRule]) -> None:
        self._rules = rules
        self._placeholders = [rule.placeholder for rule in rules if rule.placeholder]
        touched = {rule.header for rule in rules}.union(_OPAQUE, *(rule.strip for rule in rules))
        touched |= {name.lower() for rule in rules for name, _ in rule.merge}
        self._touched = grammar.fields_named(touched)
        self._drafts: OrderedDict[tuple[bytes, ...], Draft] = OrderedDict()

    def draft(self, fields: bytes) -> tuple[Draft, bytes]:
        """A plan for a request with these fields, and those of them that it leaves alone."""
        pieces = self._touched.split(fields)
        others = b"".join(pieces[::3])
        if self._speaks_of_credentials(others):
            return Draft(make_plan(self._rules, split_fields(fields))), b""
        del pieces[::3]
        key = tuple(pieces)
        draft = self._drafts.get(key)
        if draft is None:
            named = zip(pieces[::2], (value.rstrip(b" \t") for value in pieces[1::2]), strict=True)
            draft = self._drafts[key] = Draft(make_plan(self._rules, tuple(named)))
            if len(self._drafts) > _KEPT:
                self._drafts.popitem(last=False)
        return draft, others

    def _speaks_of_credentials(self, others: bytes) -> bool:
        """Whether a rule may have to look at these, although it does not own them."""
        return any(placeholder in others for placeholder in self._placeholders) or b"asic" in others.lower()


def equip(draft: Draft, others: bytes, credentials: Sequence[Credential]) -> Equipped:
    """Carry a plan out. `credentials` are those that it names, in its order. Raises InjectionError, ValueError."""
    done = draft.done
    if done is None or not _same(draft.credentials, credentials):
        plan = draft.plan
        injected = carry_out(plan, dict(zip(plan.credentials, credentials, strict=True)))
        headers = inspectable(injected.headers) if injected.secrets else injected.headers
        done = Equipped(join_fields(headers), injected.grants, injected.secrets, injected.names)
        draft.credentials, draft.done = credentials, done
    return done._replace(fields=others + done.fields) if others else done


def _same(one: Sequence[Credential], other: Sequence[Credential]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def inspectable(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers of a request with a credential: its response has to be readable, whole and in order.

    A range could cut an echoed secret in two, and a WebSocket extension would compress it.
    """
    kept = tuple(field for field in headers if field[0].lower() not in _OPAQUE)
    return (*kept, (b"Accept-Encoding", b"identity"))
