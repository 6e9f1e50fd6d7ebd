"""Credentials that are kept elsewhere, for a run: asked for at its start, and again after a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import anyio

from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.grants import Credential, CredentialInfo, Secret
from moat.vault.imported import Renewing
from moat.vault.origin import Origin
from moat.vault.resolve import resolve
from moat.vault.store import Vault

_PAUSE = 15.0  # seconds before a place that failed, or whose credential was not taken, is asked again
Notice = Callable[[str, str, str], None]  # (grant, where from, error or "")


@dataclass(frozen=True, slots=True)
class _Held:
    info: CredentialInfo
    secret: Secret | None  # None: `error`
    error: GrantError | None
    until: float  # on the monotonic clock
    since: float


class DynamicCredentials:
    """A CredentialSource in front of another one, which has all that the vault keeps."""

    def __init__(self, vault: Vault, rest: Renewing, notice: Notice) -> None:
        self._vault = vault
        self._rest = rest
        self._notice = notice
        self._held: dict[str, _Held] = {}
        self._asking: dict[str, anyio.Lock] = {}
        self._stamp: object = None
        self._known: dict[str, tuple[CredentialInfo, Origin] | None] = {}

    async def prepare(self, names: Iterable[str]) -> None:
        """Ask for all of `names` that are kept elsewhere, at once. Raises one GrantError for all of them."""
        problems: list[GrantError] = []

        async def ask(name: str) -> None:
            try:
                await self.credential(name)
            except GrantError as error:
                problems.append(error)

        async with anyio.create_task_group() as tasks:
            for name in names:
                if self._place(name) is not None:
                    tasks.start_soon(ask, name)
        if problems:
            problems.sort(key=str)
            hints = dict.fromkeys(error.hint for error in problems if error.hint)
            raise GrantError("\n".join(map(str, problems)), hint="\n".join(hints))

    async def credential(self, name: str) -> Credential:
        """One process or call at a time for each name. Raises GrantError, VaultError."""
        place = self._place(name)
        if place is None:
            return await self._rest.credential(name)
        info, origin = place
        held = self._held.get(name)
        if not _serves(held, info):
            async with self._asking.setdefault(name, anyio.Lock()):
                held = self._held.get(name)
                if not _serves(held, info):
                    held = self._held[name] = await self._resolve(info, origin)
        assert held is not None
        if held.secret is None:
            assert held.error is not None
            raise GrantError(str(held.error), hint=held.error.hint)
        return Credential(info, held.secret)

    def rejected(self, name: str) -> bool:
        """Its host did not take the credential: it may have been replaced where it is kept."""
        if self._place(name) is None:
            return self._rest.rejected(name)
        held = self._held.get(name)
        if held is not None and time.monotonic() >= held.since + _PAUSE:
            del self._held[name]
        return False

    async def _resolve(self, info: CredentialInfo, origin: Origin) -> _Held:
        now = time.monotonic()
        try:
            secret = await resolve(origin)
        except GrantError as error:
            self._notice(info.name, origin.shown, str(error))
            failure = GrantError(f"{info.name}: {error}", hint=error.hint)
            return _Held(info, None, failure, now + _PAUSE, now)
        self._notice(info.name, origin.shown, "")
        return _Held(info, secret, None, time.monotonic() + origin.life, now)

    def _place(self, name: str) -> tuple[CredentialInfo, Origin] | None:
        """Where a credential is kept, None: not elsewhere. Follows what is granted and revoked meanwhile."""
        stamp = self._vault.stamp
        if stamp != self._stamp:
            self._stamp, self._known = stamp, {}
        if name not in self._known:
            self._known[name] = self._look_up(name)
        return self._known[name]

    def _look_up(self, name: str) -> tuple[CredentialInfo, Origin] | None:
        try:
            info = self._vault.info(name)
        except GrantError:
            return None  # the other source says so better
        origin = Origin.of(info)
        return None if origin is None else (info, origin)


def _serves(held: _Held | None, info: CredentialInfo) -> bool:
    return held is not None and held.info == info and time.monotonic() < held.until
