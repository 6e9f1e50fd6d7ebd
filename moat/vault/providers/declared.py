"""A provider that is nothing but facts: one token, where it goes, and how the sandbox is told.

Most vendors are one: a file here makes a `Declared`, and `~/.moat/providers/*.yaml` do the same for
vendors that Moat does not know (`yaml_file`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Literal

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, Grant, InjectionRule, LoginRule, Secret, Surface
from moat.vault.providers.model import Check, Entry, Held

_EMPTY: Mapping[str, str] = MappingProxyType({})
_FILLER = "0"


@dataclass(frozen=True, slots=True)
class Injection:
    """Where the credential goes out: in a header, or for the placeholder in another part of a request."""

    header: str = "authorization"  # lower case
    scheme: Literal["bearer", "token", "basic", "raw"] = "bearer"
    username: str = ""  # for `basic`
    strip: tuple[str, ...] = ()  # headers that must not go along with it
    surfaces: tuple[Surface, ...] = ("header",)
    occurrences: int = 1  # in target and body of one request, at most

    def headers(self, secret: Secret) -> dict[str, str]:
        """What a request of Moat's own needs of it."""
        return {self.header: self.value(secret)} if "header" in self.surfaces else {}

    @property
    def shown(self) -> str:
        """For a person: `in the header authorization (Bearer), in the path`."""
        how = {"bearer": "Bearer", "token": "token", "basic": f"Basic, {self.username}", "raw": "as it is"}
        header = f"in the header {self.header} ({how[self.scheme]})"
        return ", ".join(header if each == "header" else f"in the {each}" for each in self.surfaces)

    def value(self, secret: Secret) -> str:
        """The header's value; for Moat's own requests, the proxy makes its own (`moat.proxy.inject`)."""
        if self.scheme == "bearer":
            return f"Bearer {secret.reveal()}"
        if self.scheme == "token":
            return f"token {secret.reveal()}"
        if self.scheme == "basic":
            return "Basic " + base64.b64encode(f"{self.username}:{secret.reveal()}".encode()).decode()
        return secret.reveal()


@dataclass(frozen=True, slots=True)
class Shape:
    """What the vendor's tokens look like, so that its own tools accept the placeholder."""

    prefix: str = ""
    length: int = 0  # of the whole; 0: as long as it gets

    def placeholder(self, token: str) -> str:
        text = f"{self.prefix}moat{token}"
        return text if not self.length else text.ljust(self.length, _FILLER)[: self.length]


@dataclass(frozen=True, slots=True)
class Declared:
    """Everything about a vendor whose credential is one token. `{host}` in texts is the scope's host."""

    name: str
    summary: str
    hosts: tuple[str, ...]  # that may get the credential, when it is granted without a scope
    injection: Injection = Injection()
    shape: Shape = Shape()
    marks: tuple[str, ...] = ()  # what its tokens begin with, and no other vendor's do
    aliases: tuple[str, ...] = ()
    opens: tuple[str, ...] = ()  # hosts that strict policy opens besides `hosts`
    scoped: tuple[str, ...] = ()  # hosts of `name:<host>`, with `{host}`; empty: it has no scopes
    sources: tuple[str, ...] = ()  # variables of the user's shell that may hold the token
    variables: tuple[str, ...] = ()  # variables of the sandbox that hold the placeholder
    constants: Mapping[str, str] = field(
        default_factory=lambda: _EMPTY
    )  # variables of the sandbox besides them
    check: Check | None = None
    where: str = ""  # page on which the vendor makes tokens

    @property
    def entry(self) -> Entry:
        return Entry(
            name=self.name,
            summary=self.summary,
            hosts=self.hosts,
            opens=(*self.hosts, *self.opens),
            aliases=self.aliases,
            marks=self.marks,
            scope="host" if self.scoped else "",
            scope_needed=False,
            scoped=self.scoped,
        )

    def check_of(self, facts: Mapping[str, str]) -> Check | None:
        """The request for a credential of which the user's files say this (`moat.vault.found.about`)."""
        del facts
        return self.check

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        del info
        return self.shape.placeholder(token)

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        return (
            InjectionRule(
                credential=info.name,
                hosts=self.entry.bound(Grant.parse(info.name).scope),
                header=self.injection.header if "header" in self.injection.surfaces else "",
                scheme=self.injection.scheme,
                username=self.injection.username,
                placeholder=placeholder,
                strip=self.injection.strip,
                surfaces=self.injection.surfaces,
                occurrences=self.injection.occurrences,
            ),
        )

    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        del info, placeholder
        return ()

    def environment(self, held: Sequence[Held]) -> Mapping[str, str]:
        """Of several, the one without a scope has the variables, else the first."""
        placeholder = plain(held).placeholder
        return {**dict.fromkeys(self.variables, placeholder), **self.constants}

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        del held
        return ()


def plain(held: Sequence[Held]) -> Held:
    """The credential without a scope, or else the first one."""
    return next((one for one in held if ":" not in one.info.name), held[0])
