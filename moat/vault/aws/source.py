"""The keys of a run's role: got from STS, held on the host, and renewed before they end."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import anyio
from anyio import to_thread

from moat.config import UpstreamConfig
from moat.dataclass import dataclass
from moat.errors import GrantError, UsageError
from moat.grants import Credential, CredentialInfo, Secret
from moat.vault.aws.hostkeys import host_keys
from moat.vault.aws.role import Role
from moat.vault.aws.sts import assume
from moat.vault.imported import Renewing
from moat.vault.providers.aws import NAME
from moat.vault.store import Vault

EARLY = 300.0  # seconds before their end in which keys are renewed: requests wait, and clocks differ
_PAUSE = 15.0  # seconds before STS is asked again, when it failed or its keys were not taken
Notice = Callable[[str, str, str], None]  # (grant, where from, error or "")


@dataclass(frozen=True, slots=True)
class _Held:
    info: CredentialInfo  # of the grant
    credential: Credential | None
    error: GrantError | None  # why the last attempt failed
    until: float  # on the monotonic clock: then another attempt is made
    since: float

    @property
    def good(self) -> bool:
        """Whether the keys, if there are any, can still be used."""
        end = self.credential.info.expires_at if self.credential else None
        return end is not None and end > dt.datetime.now(dt.UTC)


class RoleKeys:
    """A CredentialSource in front of another one, which has all but roles of AWS."""

    def __init__(
        self, vault: Vault, upstream: UpstreamConfig, session: str, rest: Renewing, notice: Notice
    ) -> None:
        """`session`: what AWS is told that the keys are for."""
        self._vault = vault
        self._upstream = upstream
        self._session = session
        self._rest = rest
        self._notice = notice
        self._asking = anyio.Lock()
        self._known: tuple[object, CredentialInfo] | None = None
        self._held: _Held | None = None

    async def prepare(self, names: Iterable[str]) -> None:
        """Get the keys before anything is made. Raises GrantError."""
        if NAME in names:
            await self.credential(NAME)

    async def credential(self, name: str) -> Credential:
        """Its secret is `moat.sigv4.Keys`, as text. STS is asked once for all. Raises GrantError."""
        if name != NAME:
            return await self._rest.credential(name)
        info = self._info()
        if not self._serves(info):
            async with self._asking:
                if not self._serves(info):
                    self._held = await self._renew(info)
        held = self._held
        assert held is not None
        if held.credential is None or not held.good:
            error = held.error or GrantError("the keys of the AWS role have ended")
            raise GrantError(f"{NAME}: {error}", hint=error.hint)
        return held.credential

    def rejected(self, name: str) -> bool:
        """Its host did not take the credential: what the role may do could have changed."""
        if name != NAME:
            return self._rest.rejected(name)
        if self._held is not None and time.monotonic() >= self._held.since + _PAUSE:
            self._held = None
        return False

    def _info(self) -> CredentialInfo:
        """What is granted now. Raises GrantError when it was revoked."""
        stamp = self._vault.stamp
        if self._known is None or self._known[0] != stamp:
            self._known = (stamp, self._vault.info(NAME))
        return self._known[1]

    def _serves(self, info: CredentialInfo) -> bool:
        return self._held is not None and self._held.info == info and time.monotonic() < self._held.until

    async def _renew(self, info: CredentialInfo) -> _Held:
        """A failure keeps what is still good."""
        now = time.monotonic()
        role = self._role(info)
        try:
            own = await to_thread.run_sync(host_keys, role.profile, abandon_on_cancel=True)
            session = await assume(role, self._session, own, self._upstream)
        except GrantError as error:
            self._notice(NAME, role.arn, str(error))
            old = self._held.credential if self._held and self._held.info == info else None
            return _Held(info, old, error, time.monotonic() + _PAUSE, now)
        self._notice(NAME, role.arn, "")
        left = (session.ends - dt.datetime.now(dt.UTC)).total_seconds()
        credential = Credential(replace(info, expires_at=session.ends), Secret(session.keys.dump()))
        return _Held(info, credential, None, now + max(left - EARLY, _PAUSE), now)

    @staticmethod
    def _role(info: CredentialInfo) -> Role:
        try:
            return Role.of(info)
        except (UsageError, ValueError):
            raise GrantError("what is stored of the AWS role is damaged", hint="grant it again") from None
