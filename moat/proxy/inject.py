"""Credentials onto requests: which rule, which header, which bytes. Pure; secrets come in as arguments.

An exchange asks `site_rules`, which remembers what was planned and carried out here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence

from moat.dataclass import dataclass
from moat.errors import MoatError
from moat.grants import Credential, InjectionRule
from moat.proxy.fields import Headers
from moat.rules import HostPattern, parse_host_pattern

_BASIC = re.compile(rb"(basic[ \t]++)([A-Za-z0-9+/_-]++=*+)", re.IGNORECASE)
_ESCAPED = re.compile(rb'["\\\\\x00-\x1f\x80-\xff]')  # what JSON writes differently, or may
_FIELD_VALUE = re.compile(rb"[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")


class InjectionError(MoatError):
    """A credential cannot be put on a request (it would break the header line it stands in)."""


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """An InjectionRule in bytes, names in lower case, ready for one request."""

    rule: InjectionRule
    patterns: tuple[HostPattern, ...]
    header: bytes
    placeholder: bytes
    strip: frozenset[bytes]
    merge: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def of(cls, rule: InjectionRule) -> CompiledRule:
        """Raises ValueError for a host pattern that is none."""
        return cls(
            rule,
            tuple(parse_host_pattern(host) for host in rule.hosts),
            rule.header.lower().encode("ascii"),
            rule.placeholder.encode("ascii"),
            frozenset(name.lower().encode("ascii") for name in rule.strip),
            tuple((name.encode("ascii"), value.encode("ascii")) for name, value in rule.merge),
        )

    def bound_to(self, host: str, port: int, scheme: str) -> bool:
        """Whether the credential may go there. Plain http is nowhere, whatever its port."""
        return (
            scheme == "https"
            and port in self.rule.ports
            and any(pattern.names(host) and pattern.port in {None, port} for pattern in self.patterns)
        )

    def value(self, secret: bytes) -> bytes:
        """The header value that carries the secret."""
        if self.rule.scheme == "bearer":
            return b"Bearer " + secret
        if self.rule.scheme == "token":
            return b"token " + secret
        if self.rule.scheme == "basic":
            return b"Basic " + base64.b64encode(self.rule.username.encode() + b":" + secret)
        return secret


@dataclass(frozen=True, slots=True)
class InjectedHeaders:
    """What goes upstream, which grants are on it, and what must never come back."""

    headers: Headers
    grants: tuple[str, ...]
    secrets: tuple[bytes, ...]  # for `Scrubber`: the secrets and their Basic forms
    names: frozenset[bytes]  # lower-case header names that carry a credential, for redaction


def needed(rules: Sequence[CompiledRule], headers: Headers) -> tuple[str, ...]:
    """Names of the credentials that `apply` will want for the same headers: only these are fetched."""
    return make_plan(rules, headers).credentials


def apply(
    rules: Sequence[CompiledRule], headers: Headers, credentials: Mapping[str, Credential]
) -> InjectedHeaders:
    """Put credentials on a request's (already forwardable) headers: a plan, carried out at once."""
    return carry_out(make_plan(rules, headers), credentials)


def carry_out(plan: Plan, credentials: Mapping[str, Credential]) -> InjectedHeaders:
    """The headers of a plan, with the credentials that it names.

    If the client sent headers that rules own, those rules replace them; otherwise every rule with another
    header name adds its own. Placeholders in other headers are replaced where they stand. All questions
    were asked of the original headers, so no rule sees, or strips, what another one has injected.
    Raises InjectionError when a secret does not fit in a header, or was not fetched.
    """
    secrets = {name: secret_of(credentials.get(name), name) for name in plan.credentials}
    swaps = [(rule.placeholder, secrets[rule.rule.credential]) for rule in plan.substituted]
    fields, carriers, encoded = _substitute(plan.kept, swaps)
    for rule in plan.owners:
        fields = _merged(fields, rule.merge)
    for rule in plan.owners:
        value = rule.value(secrets[rule.rule.credential])
        fields.append((rule.header, value))
        if rule.rule.scheme == "basic":
            encoded.append(value.removeprefix(b"Basic "))
    return InjectedHeaders(
        tuple(fields),
        plan.credentials,
        to_scrub(secrets.values(), encoded),
        frozenset(carriers) | {rule.header for rule in plan.owners},
    )


def in_frames(
    rules: Sequence[CompiledRule], credentials: Mapping[str, Credential]
) -> tuple[tuple[tuple[bytes, bytes], ...], tuple[bytes, ...]]:
    """(placeholder, secret) for text messages of a WebSocket, and what must never come back.

    Raises InjectionError, also for a secret that JSON would have to escape: most such messages are JSON, and
    one that is not could not be told apart.
    """
    swaps = []
    for rule in rules:
        secret = secret_of(credentials.get(rule.rule.credential), rule.rule.credential)
        if _ESCAPED.search(secret):
            raise InjectionError(
                f"the credential of grant {rule.rule.credential} holds a character that no message can carry"
            )
        if rule.placeholder:
            swaps.append((rule.placeholder, secret))
    return tuple(swaps), to_scrub((secret for _, secret in swaps), ())


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rules act on a request, decided on its original headers."""

    owners: list[CompiledRule]  # set their own header
    kept: list[tuple[bytes, bytes]]  # fields that no owner replaces or strips
    substituted: list[CompiledRule]  # their placeholder stands in a kept field

    @property
    def credentials(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rule.rule.credential for rule in [*self.owners, *self.substituted]))


def make_plan(rules: Sequence[CompiledRule], headers: Headers) -> Plan:
    """Decide what is put where, and which credentials that takes, before any is fetched."""
    owners = _owners(rules, headers)
    dropped = {rule.header for rule in owners}.union(*(rule.strip for rule in owners))
    kept = [field for field in headers if field[0].lower() not in dropped]
    text = b"\n".join([opened(value) for _, value in kept])
    return Plan(owners, kept, [rule for rule in rules if _holds(text, rule.placeholder)])


def _owners(rules: Sequence[CompiledRule], headers: Headers) -> list[CompiledRule]:
    """The rules that set their header: those the client asked for by name, or else all; one per header.

    On a tie the rule whose placeholder the client sent wins, then the first.
    """
    owned = {rule.header for rule in rules}
    sent: dict[bytes, bytes] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in owned:
            sent[lower] = sent.get(lower, b"") + b"\n" + opened(value)
    asked = [rule for rule in rules if rule.header in sent]
    chosen: dict[bytes, CompiledRule] = {}
    for rule in asked or rules:
        holder = chosen.setdefault(rule.header, rule)
        value = sent.get(rule.header, b"")
        if not _holds(value, holder.placeholder) and _holds(value, rule.placeholder):
            chosen[rule.header] = rule
    return list(chosen.values())


def _substitute(
    fields: list[tuple[bytes, bytes]], swaps: Sequence[tuple[bytes, bytes]]
) -> tuple[list[tuple[bytes, bytes]], set[bytes], list[bytes]]:
    """Fields with secrets for placeholders, the names of those changed, and Basic forms made on the way."""
    if not swaps:
        return list(fields), set(), []
    result: list[tuple[bytes, bytes]] = []
    changed: set[bytes] = set()
    encoded: list[bytes] = []
    for name, value in fields:
        new = _BASIC.sub(lambda match: match[1] + _encoded_swap(match[2], swaps, encoded), value)
        new = _swap(new, swaps)
        if new != value:
            changed.add(name.lower())
        result.append((name, new))
    return result, changed, encoded


def _encoded_swap(text: bytes, swaps: Sequence[tuple[bytes, bytes]], encoded: list[bytes]) -> bytes:
    plain = _decode(text)
    swapped = _swap(plain, swaps)
    if swapped == plain:
        return text
    form = base64.b64encode(swapped)
    encoded.append(form)
    return form


def _swap(text: bytes, swaps: Sequence[tuple[bytes, bytes]]) -> bytes:
    for placeholder, secret in swaps:
        text = text.replace(placeholder, secret)
    return text


def _merged(
    fields: list[tuple[bytes, bytes]], merge: Iterable[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """Fields with values appended to comma lists, each list in one field, nothing twice."""
    for name, value in merge:
        lines = [field for field in fields if field[0].lower() == name.lower()]
        items = [item.strip(b" \t") for _, line in lines for item in line.split(b",")]
        unique = dict.fromkeys([*filter(None, items), value])
        fields = [field for field in fields if field[0].lower() != name.lower()]
        fields.append((lines[0][0] if lines else name, b",".join(unique)))
    return fields


def secret_of(credential: Credential | None, name: str) -> bytes:
    """The bytes of a credential. Raises InjectionError when they would break the line that they stand in."""
    if credential is None:
        raise InjectionError(f"the credential of grant {name} was not fetched for this request")
    secret = credential.secret.reveal().encode()
    if not _FIELD_VALUE.fullmatch(secret):
        raise InjectionError(
            f"the credential of grant {name} is empty or holds a line end or control character",
            hint=f"store it again: moat grant {name}",
        )
    return secret


def to_scrub(secrets: Iterable[bytes], encoded: Iterable[bytes]) -> tuple[bytes, ...]:
    """What went out, without base64 padding: `needles` knows how it is spelled."""
    return tuple(dict.fromkeys([*secrets, *(form.rstrip(b"=") for form in encoded)]))


def opened(value: bytes) -> bytes:
    """A header value, followed by what its Basic credentials decode to."""
    if b"asic" not in value.lower():
        return value
    return b"\n".join([value, *(_decode(match[2]) for match in _BASIC.finditer(value))])


def _decode(text: bytes) -> bytes:
    """Base64 of either alphabet, padded or not; b"" when it is none."""
    plain = text.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4))
    except binascii.Error:
        return b""


def _holds(text: bytes, placeholder: bytes) -> bool:
    return bool(placeholder) and placeholder in text
