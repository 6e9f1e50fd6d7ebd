"""What the rules of a run mean at one authority, worked out once. Pure; secrets come in as arguments.

`inject` decides and carries out for any headers. Most requests to a host differ only in fields that no rule
looks at, so the answer for the fields that matter is kept and used again. A request with a placeholder
anywhere else, or with something that could decode to one, takes the plain way each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from moat.grants import Credential, InjectionRule, Rule, SigningRule
from moat.proxy import grammar
from moat.proxy.events import Denial
from moat.proxy.fields import Headers, join_fields, split_fields
from moat.proxy.inject import CompiledRule, Plan, carry_out, make_plan, opened
from moat.proxy.leak_guard import Strangers, misplaced
from moat.proxy.signing import Signer
from moat.proxy.substitute import Binding, bindings_of, parts

BodyLeaks = Literal["refuse", "pass"]
"""What becomes of a body with a placeholder on its way to a host that no rule is for."""

_SITES = 256  # authorities whose rules are remembered
_DRAFTS = 32  # sets of fields remembered for an authority; clients have one or two
_FITTINGS = 16  # whole heads, the same
_MEMORABLE = 4096  # bytes of a head that is remembered
_PERCENT = ord("%")
_BASIC = b"asic"  # of `Basic`, in lower case: what stands behind it has to be decoded
_OPAQUE = frozenset({
    b"accept-encoding", b"grpc-accept-encoding", b"connect-accept-encoding",
    b"range", b"if-range", b"sec-websocket-extensions",
})  # fmt: skip


class Equipped(NamedTuple):
    """A request with its credentials."""

    fields: bytes  # what goes upstream, each with a CRLF before it
    grants: tuple[str, ...] = ()
    secrets: tuple[bytes, ...] = ()  # what must never come back
    names: frozenset[bytes] = frozenset()  # lower-case header names that carry a credential


class Draft:
    """A plan for a request, and what came of it the last time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.credentials = plan.credentials  # names of those that it takes
        self.used: Sequence[Credential] = ()
        self.done: Equipped | None = None


class Fitting:
    """A plan for a request with exactly these fields, and what came of it the last time."""

    def __init__(self, draft: Draft, others: bytes) -> None:
        """`others` are the fields that the plan leaves alone."""
        self.draft = draft
        self.others = others
        self.used: Sequence[Credential] | None = None
        self.done = Equipped(b"")


class InjectionTable:
    """The rules of a run, by authority."""

    def __init__(self, rules: Sequence[Rule], *, body_leaks: BodyLeaks = "refuse") -> None:
        """Raises ValueError for a host pattern that is none."""
        self._guards_bodies = body_leaks == "refuse"
        self._rules = tuple(CompiledRule.of(rule) for rule in rules if isinstance(rule, InjectionRule))
        self._signers = tuple(Signer.of(rule) for rule in rules if isinstance(rule, SigningRule))
        self._sites: OrderedDict[tuple[str, int, str], SiteRules] = OrderedDict()

    def site(self, host: str, port: int, scheme: str) -> SiteRules:
        """What the rules mean there; none is ever bound to anything but `https`."""
        key = (host, port, scheme)
        site = self._sites.get(key)
        if site is None:
            bound = tuple(rule for rule in self._rules if rule.bound_to(host, port, scheme))
            placeholders = {rule.placeholder for rule in bound}
            signers = [signer for signer in self._signers if signer.bound_to(host, port, scheme)]
            placeholders |= {signer.placeholder for signer in signers}
            known: tuple[CompiledRule | Signer, ...] = (*self._rules, *self._signers)
            strangers = [rule for rule in known if rule.placeholder and rule.placeholder not in placeholders]
            # Not where a grant is for: what an agent says to its model may quote its environment.
            guarded = self._guards_bodies and not (bound or signers)
            where = f"{scheme}://{host}:{port}"
            signer = signers[0] if signers else None
            site = self._sites[key] = SiteRules(where, bound, strangers, guarded=guarded, signer=signer)
            if len(self._sites) > _SITES:
                self._sites.popitem(last=False)
        return site


class SiteRules:
    """The rules of a run at one authority."""

    def __init__(
        self,
        where: str,
        bound: Sequence[CompiledRule],
        strangers: Sequence[CompiledRule | Signer],
        *,
        guarded: bool = False,
        signer: Signer | None = None,
    ) -> None:
        """`bound` to the authority, `strangers` to others; `guarded`: those are kept out of bodies too."""
        self.rules = tuple(rule for rule in bound if "header" in rule.rule.surfaces)
        self.in_frames = tuple(rule for rule in bound if "websocket" in rule.rule.surfaces)
        self.bindings: tuple[Binding, ...] = bindings_of(bound)  # in target and body
        self.tokens = frozenset(rule.rule.credential for rule in self.rules if rule.rule.tokens)
        self.signer = signer  # of requests that are signed with the run's key
        self.where = where
        self._strangers = Strangers(strangers, where) if strangers else None
        self.guard = self._strangers if guarded else None  # of bodies
        self._on_headers = frozenset(rule.placeholder for rule in self.rules)
        self._at_home = tuple({rule.placeholder: rule for rule in bound if rule.placeholder}.values())
        self._surfaces = {binding.placeholder: binding.surfaces for binding in self.bindings}
        self._placeholders = [rule.placeholder for rule in self.rules if rule.placeholder]
        touched = {rule.header for rule in self.rules}.union(_OPAQUE, *(rule.strip for rule in self.rules))
        touched |= {name.lower() for rule in self.rules for name, _ in rule.merge}
        self._touched = grammar.fields_named(touched)
        self._drafts: OrderedDict[tuple[bytes, ...], Draft] = OrderedDict()
        self._fittings: OrderedDict[bytes, Fitting] = OrderedDict()

    def leaks(self, target: bytes, fields: bytes) -> Denial | None:
        """A denial when a request carries a placeholder in its head where it is not bound to go.

        `credential-host`: it is of another host; `credential-surface`: another part of the request is for it.
        """
        for rule in self._at_home:
            # `find`, and `%` as a number: `in` makes a TypeError of bytes before it looks for them.
            if (
                target.find(rule.placeholder) >= 0
                or _PERCENT in target
                or rule.placeholder not in self._on_headers
            ):
                denial = self._misplaced(rule, target, fields)
                if denial is not None:
                    return denial
        return self._strangers.denial(target + fields) if self._strangers is not None else None

    def _misplaced(self, rule: CompiledRule, target: bytes, fields: bytes) -> Denial | None:
        surfaces = self._surfaces.get(rule.placeholder, frozenset())
        for part, text in parts(target):
            if part not in surfaces and rule.placeholder in unquote_to_bytes(text):
                return misplaced(rule.rule, part, self.where)
        if rule.placeholder not in self._on_headers and rule.placeholder in _everything(
            split_fields(fields), b""
        ):
            return misplaced(rule.rule, "header", self.where)
        return None

    @property
    def credentials(self) -> tuple[str, ...]:
        """Names of those that a request may get, in whatever part of it."""
        names = [rule.rule.credential for rule in (*self.rules, *self.in_frames)]
        names += [binding.credential for binding in self.bindings]
        if self.signer is not None:
            names.append(self.signer.rule.credential)
        return tuple(dict.fromkeys(names))

    def _may_name_one(self, fields: bytes) -> bool:
        for placeholder in self._placeholders:
            if placeholder in fields:
                return True
        return _BASIC in fields.lower()

    def fitting(self, fields: bytes) -> Fitting:
        """A plan for a request with these fields."""
        fitting = self._fittings.get(fields)
        if fitting is None:
            fitting = Fitting(*self._draft(fields))
            if len(fields) <= _MEMORABLE:
                self._fittings[fields] = fitting
                if len(self._fittings) > _FITTINGS:
                    self._fittings.popitem(last=False)
        return fitting

    def _draft(self, fields: bytes) -> tuple[Draft, bytes]:
        """A plan for a request with these fields, and those of them that it leaves alone."""
        pieces = self._touched.split(fields)
        others = b"".join(pieces[::3])
        if self._may_name_one(others):
            return Draft(make_plan(self.rules, split_fields(fields))), b""
        del pieces[::3]
        key = tuple(pieces)
        draft = self._drafts.get(key)
        if draft is None:
            named = zip(pieces[::2], (value.rstrip(b" \t") for value in pieces[1::2]), strict=True)
            draft = self._drafts[key] = Draft(make_plan(self.rules, tuple(named)))
            if len(self._drafts) > _DRAFTS:
                self._drafts.popitem(last=False)
        return draft, others


def equip(fitting: Fitting, credentials: Sequence[Credential]) -> Equipped:
    """Carry a plan out. `credentials` are those that it names, in its order. Raises InjectionError."""
    if fitting.used != credentials:
        fitting.done = _equip(fitting.draft, fitting.others, credentials)
        fitting.used = credentials
    return fitting.done


def _equip(draft: Draft, others: bytes, credentials: Sequence[Credential]) -> Equipped:
    done = draft.done
    if done is None or draft.used != credentials:
        injected = carry_out(draft.plan, dict(zip(draft.credentials, credentials, strict=True)))
        headers = inspectable(injected.headers) if injected.secrets else injected.headers
        done = Equipped(join_fields(headers), injected.grants, injected.secrets, injected.names)
        draft.used, draft.done = credentials, done
    return Equipped(others + done.fields, done.grants, done.secrets, done.names)


def inspectable(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers of a request with a credential: its response has to be readable, whole and in order.

    A range could cut an echoed secret in two, and a WebSocket extension would compress it.
    """
    kept = tuple(field for field in headers if field[0].lower() not in _OPAQUE)
    return (*kept, (b"Accept-Encoding", b"identity"))


def _everything(headers: Headers, target: bytes) -> bytes:
    """All text of a request in which a placeholder could stand, encoded forms opened."""
    parts = [target, unquote_to_bytes(target)] if b"%" in target else [target]
    for name, value in headers:
        parts += [name, opened(value)]
        if b"%" in value:
            parts.append(unquote_to_bytes(value))
    return b"\n".join(parts)
