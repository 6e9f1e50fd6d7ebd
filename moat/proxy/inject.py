"""Credentials onto requests: which rule, which header, which bytes. Pure; secrets come in as arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moat.errors import MoatError
from moat.grants import Credential, InjectionRule
from moat.proxy.events import Denial
from moat.proxy.http1 import Headers


class InjectionError(MoatError):
    """A credential cannot be put on a request (it would break the header line it stands in)."""


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """An InjectionRule in bytes, ready for one request."""

    rule: InjectionRule
    header: bytes
    placeholder: bytes
    strip: frozenset[bytes]
    merge: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class InjectedHeaders:
    """What goes upstream, which grants are on it, and what must never come back."""

    headers: Headers
    grants: tuple[str, ...]
    secrets: tuple[bytes, ...]  # for `Scrubber`: the secrets, their Basic and percent-encoded forms
    names: frozenset[bytes]  # lower-case header names that carry a credential, for redaction


class InjectionTable:
    """The rules of a run, by host. An exchange asks in this order: leaks, for_host, needed, apply."""

    def __init__(self, rules: Sequence[InjectionRule]) -> None:
        raise NotImplementedError

    def for_host(self, host: str, port: int, scheme: str) -> tuple[CompiledRule, ...]:
        """Rules bound to this authority; always () for anything but `https`."""
        raise NotImplementedError

    def leaks(self, host: str, port: int, scheme: str, headers: Headers, target: bytes) -> Denial | None:
        """A denial (`credential-host`) when the request carries a placeholder that is not bound to here."""
        raise NotImplementedError


def needed(rules: Sequence[CompiledRule], headers: Headers) -> tuple[str, ...]:
    """Names of the credentials that `apply` will want: only these are fetched."""
    raise NotImplementedError


def apply(
    rules: Sequence[CompiledRule], headers: Headers, credentials: Mapping[str, Credential]
) -> InjectedHeaders:
    """Put credentials on a request's (already forwardable) headers.

    Raises InjectionError when a secret does not fit in a header, KeyError when `needed` was not honoured.
    """
    raise NotImplementedError
