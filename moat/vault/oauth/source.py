"""The credentials of a run: the vault's, with logins renewed before they end.

A server may replace the refresh token each time. So one process at a time asks (a lock beside the vault),
and not before the vault could take an answer and a note on the disk says that one is expected. The first
thing done with an answer is to store it, nobody who leaves in between interrupts that, and what cannot be
stored is kept, tried again, and tried a last time at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio import to_thread

from moat.config import UpstreamConfig
from moat.dataclass import dataclass
from moat.errors import GrantError, MoatError, VaultError
from moat.grants import Credential, CredentialInfo, Secret
from moat.paths import locked
from moat.vault.index import Ref
from moat.vault.oauth.attempt import Attempt
from moat.vault.oauth.tokens import LoginLostError, Tokens, renew
from moat.vault.oauth.web import Web
from moat.vault.providers import again
from moat.vault.store import Vault

_PAUSE = 15.0  # seconds between two attempts of which the first went wrong
RENEWED_AT = "renewed_at"  # in the metadata of a login: the host that renews it
Notice = Callable[[str, str], None]  # (outcome, as in `login.renewed` of the journal; name of the grant)


def is_login(info: CredentialInfo) -> bool:
    """Whether what is stored are tokens that can be renewed, or could be if the server had said how."""
    return info.name.startswith("oauth:") or RENEWED_AT in info.metadata


@dataclass(frozen=True, slots=True)
class _Unsaved:
    """What a server has given, and what it takes the place of."""

    old: tuple[Ref, Credential]
    new: Credential


class RunCredentials:
    """A CredentialSource. `notice` is told once of each login that was renewed, lost or not stored."""

    def __init__(self, vault: Vault, upstream: UpstreamConfig, locks: Path, notice: Notice) -> None:
        """`locks`: the directory for lock files; the same for all processes that use `vault`."""
        self._vault = vault
        self._web = Web(upstream)
        self._locks = locks
        self._notice = notice
        self._asking: dict[str, anyio.Lock] = {}
        self._lost: dict[str, str] = {}  # refresh tokens that are no longer accepted
        self._interrupted: set[str] = set()  # logins lost because an answer was
        self._unwritable: dict[str, VaultError] = {}  # why the vault could not take an answer
        self._unsaved: dict[str, _Unsaved] = {}
        self._not_before: dict[str, float] = {}
        self._given: dict[str, str] = {}  # the access token that was given out last
        self._rejected: dict[str, str] = {}  # one that its server did not take

    async def credential(self, name: str) -> Credential:
        """As the vault's; of a login it is the access token. Raises GrantError, VaultError."""
        found = self._waiting(name) or await self._vault.credential(name)
        if not is_login(found.info):
            return found
        tokens = Tokens.decode(found.secret, name)
        if self._needs_renewal(name, tokens):
            async with self._asking.setdefault(name, anyio.Lock()):
                tokens, found = await self._current(name)
                if self._needs_renewal(name, tokens):
                    # Who asked may leave; the answer of the server must not be lost for that.
                    with anyio.CancelScope(shield=True):
                        tokens, found = await to_thread.run_sync(self._renew, name)
        if tokens.expired(time.time()):
            raise self._ended(name, found)
        self._given[name] = tokens.access
        return Credential(found.info, Secret(tokens.access))

    def rejected(self, name: str) -> bool:
        """The server of a login did not take its token, which has not ended: the next one is a new one.

        False: `name` is no login that was given out, and there will be no other.
        """
        if name not in self._given:
            return False
        if time.monotonic() >= self._not_before.get(name, 0.0):
            self._rejected[name] = self._given[name]
        return True

    async def aclose(self) -> None:
        """Store what could not be stored when it came."""
        for name in tuple(self._unsaved):
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._store_again, name)

    async def _current(self, name: str) -> tuple[Tokens, Credential]:
        found = self._waiting(name) or await self._vault.credential(name)
        return Tokens.decode(found.secret, name), found

    def _waiting(self, name: str) -> Credential | None:
        """What could not be stored yet; None: nothing, or the user has revoked the login or made another."""
        unsaved = self._unsaved.get(name)
        return unsaved.new if unsaved is not None and self._vault.holds(name, unsaved.old[0]) else None

    def _needs_renewal(self, name: str, tokens: Tokens) -> bool:
        if name in self._unsaved:
            return time.monotonic() >= self._not_before.get(name, 0.0)
        due = tokens.due(time.time()) or tokens.access == self._rejected.get(name)
        if tokens.refresh is None or not due:
            return False
        return self._lost.get(name) != tokens.refresh and time.monotonic() >= self._not_before.get(name, 0.0)

    def _ended(self, name: str, found: Credential) -> GrantError:
        again_on_host = f"run `{again(found.info)}` on the host"
        if name in self._interrupted:
            return GrantError(
                f"the login {name} was lost: Moat was cut off while its server renewed it", hint=again_on_host
            )
        if name in self._lost:
            return GrantError(f"the login {name} is no longer accepted by its server", hint=again_on_host)
        ended = f"the login {name} has ended and could not be renewed"
        if (reason := self._unwritable.get(name)) is not None:
            return GrantError(f"{ended}: {reason}", hint=reason.hint)
        return GrantError(ended, hint=again_on_host)

    # --- in a thread ------------------------------------------------------------------------------

    def _renew(self, name: str) -> tuple[Tokens, Credential]:
        """What is current after one attempt. An attempt that goes wrong leaves what there was."""
        with locked(self._locks / f".renew-{name}"):
            unsaved = self._unsaved.get(name)
            if unsaved is not None and self._store(name, unsaved):
                return Tokens.decode(unsaved.new.secret, name), unsaved.new
            _, found = old = self._vault.current(name)  # another process may have done it while we waited
            tokens = Tokens.decode(found.secret, name)
            if not self._needs_renewal(name, tokens):
                return tokens, found
            try:
                tokens = self._ask(name, tokens)
            except LoginLostError:
                return tokens, found
            except (MoatError, OSError) as error:
                if isinstance(error, VaultError):
                    self._unwritable[name] = error
                self._not_before[name] = time.monotonic() + _PAUSE
                self._notice("failed", name)
                return tokens, found
            self._unwritable.pop(name, None)
            if self._rejected.pop(name, None) is not None:
                self._not_before[name] = time.monotonic() + _PAUSE  # it may not be the token's fault
            found = Credential(found.info, tokens.encode())
            if not self._store(name, _Unsaved(old, found)):
                found = self._vault.get(name)
                return Tokens.decode(found.secret, name), found
            self._notice("renewed", name)
            return tokens, found

    def _ask(self, name: str, tokens: Tokens) -> Tokens:
        """The server's new tokens. Raises LoginLostError, which is told; VaultError, WebError, OSError."""
        assert tokens.refresh is not None
        self._vault.prepare()  # a keyring that is locked now would not take what the server gives once
        attempt = self._attempt(name)
        interrupted = attempt.is_open(tokens.refresh)
        attempt.begin(tokens.refresh)
        try:
            return asyncio.run(renew(self._web, tokens))
        except LoginLostError:
            self._lost[name] = tokens.refresh
            if interrupted:
                self._interrupted.add(name)
            else:
                attempt.end()
            self._notice("interrupted" if interrupted else "lost", name)
            raise

    def _attempt(self, name: str) -> Attempt:
        return Attempt(self._locks / f".renewing-{name}")

    def _store_again(self, name: str) -> None:
        with locked(self._locks / f".renew-{name}"):
            self._store(name, self._unsaved[name])

    def _store(self, name: str, answer: _Unsaved) -> bool:
        """False: the login was revoked or made anew meanwhile, and what the user did stays done."""
        try:
            ours = self._vault.renew(answer.old, answer.new)
        except (VaultError, OSError):
            self._unsaved[name] = answer
            self._not_before[name] = time.monotonic() + _PAUSE
            self._notice("not stored", name)
            return True
        self._unsaved.pop(name, None)
        self._attempt(name).end()
        return ours
