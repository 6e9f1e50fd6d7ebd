"""The words that the vault, the proxy and the runtime share: grant, credential, injection rule.

Nothing here reads, stores or sends a secret. `Secret` is the only holder of one; it never shows
itself in `repr`, `str`, logs or pickles, so a credential can be passed around and printed safely.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, NoReturn, Protocol

from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.regex import regex

_GRANT = regex(r"[a-z][a-z0-9_-]{0,63}(:[A-Za-z0-9][A-Za-z0-9._-]{0,253})?")
_EMPTY: Mapping[str, str] = MappingProxyType({})

Surface = Literal["header", "path", "query", "body", "websocket"]
"""A part of a request that may carry a credential; `websocket`: text messages of the client."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A named permission to use a credential in a run: `anthropic`, `github`, `ssh:github.com`."""

    name: str  # `anthropic`, `ssh`
    scope: str | None = None  # what follows the colon: `github.com`

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Read `name` or `name:scope`. Raises GrantError for anything else."""
        if not _GRANT.fullmatch(text):
            raise GrantError(f"{text!r} is not a grant name", hint="see `moat grant providers`")
        name, _, scope = text.partition(":")
        return cls(name, scope or None)

    def __str__(self) -> str:
        return f"{self.name}:{self.scope}" if self.scope else self.name


class Secret:
    """Bytes of a credential. `reveal()` is the one way to them; grep for it to find every use."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never serialised")


class CredentialKind(StrEnum):
    OAUTH = "oauth"  # a bearer token of a subscription; may expire
    API_KEY = "api-key"
    TOKEN = "token"  # noqa: S105 - a kind of credential, not one
    ROLE = "role"  # of AWS: what may be assumed; keys are got for each run
    SSH_KEY = "ssh-key"  # which key may be used; the key itself is not stored


@dataclass(frozen=True, slots=True)
class CredentialInfo:
    """What may be shown, listed and written in an index: everything of a credential but the secret."""

    name: str  # the grant that it serves, as `str(Grant)`
    kind: CredentialKind
    hosts: tuple[str, ...]  # host patterns it is bound to; it never goes anywhere else
    created_at: dt.datetime
    expires_at: dt.datetime | None = None  # None: no expiry known
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)  # e.g. subscription, source

    def expired(self, now: dt.datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Credential:
    """The secret itself with what is known of it."""

    info: CredentialInfo
    secret: Secret


class CredentialSource(Protocol):
    """Where the proxy gets a credential from, after policy has allowed the exchange."""

    async def credential(self, name: str) -> Credential:
        """The current credential of grant `name`, or of a part of it (`part_of`).

        Raises GrantError or VaultError; may be slow.
        """
        ...


def part_of(grant: str, scope: str) -> str:
    """The name of a credential that is good for no more than `scope` of what the grant allows."""
    return f"{grant} {scope}"


def grant_of(name: str) -> str:
    """The grant that a name of `part_of` belongs to; any other name as it is."""
    return name.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class InjectionRule:
    """How one credential is put on requests to the hosts it is bound to.

    On the surface `header` it is put whether the client sends something or not; on the others it takes the
    place of the placeholder, where a request carries it.

    The proxy compiles the rules of a run into its per-host table (`moat.proxy.inject`).
    """

    credential: str  # name to ask the CredentialSource for
    hosts: tuple[str, ...]  # exact host or `*.suffix` (any depth, not the apex)
    header: str = ""  # header that carries the credential, lower case: `authorization`, `x-api-key`
    scheme: Literal["bearer", "token", "basic", "raw"] = "bearer"
    username: str = ""  # for `basic`: base64(username:secret)
    placeholder: str = ""  # what the sandbox holds; replaced wherever a header value contains it
    strip: tuple[str, ...] = ()  # other request headers to remove (`x-api-key` next to a bearer token)
    merge: tuple[tuple[str, str], ...] = ()  # (header, value) to append to a comma list, no duplicates
    ports: tuple[int, ...] = (443,)
    surfaces: tuple[Surface, ...] = ("header",)
    # Placeholders that are replaced in target and body of one request; with one more it is refused.
    occurrences: int = 1
    # Not the credential itself goes out, but a token that was got for it and this one request (`part_of`).
    tokens: Literal["", "registry"] = ""

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that could not do what it says."""
        if "header" in self.surfaces and not self.header:
            raise ValueError(f"{self.credential}: the surface `header` needs the name of one")
        if self.occurrences < 1:
            raise ValueError(f"{self.credential}: at least one occurrence")


@dataclass(frozen=True, slots=True)
class SigningRule:
    """Requests that AWS clients in the sandbox sign with placeholder keys, and that the proxy signs anew.

    The secret of the credential is `moat.sigv4.Keys`, as text.
    """

    credential: str
    hosts: tuple[str, ...]  # as in InjectionRule
    key_id: str  # what the sandbox signs with; both are placeholders
    key: str
    ports: tuple[int, ...] = (443,)

    @property
    def placeholder(self) -> str:
        """What a request shows of them."""
        return self.key_id


Rule = InjectionRule | SigningRule


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRule:
    """Where tools would renew a login themselves (RFC 6749 §6), and what the proxy answers them there.

    The real tokens are renewed on the host; a tool in the sandbox gets its placeholders once more.
    """

    credential: str
    hosts: tuple[str, ...]  # exact names, at port 443
    path: str
    access: str  # placeholder of the access token
    refresh: str  # and of the refresh token
    scope: str = ""
    about: str = ""  # path at which a tool asks what its access token is good for
    shared: bool = False  # other logins are renewed there too: a request without `refresh` is not ours
    again: str = ""  # the command that makes the login anew
