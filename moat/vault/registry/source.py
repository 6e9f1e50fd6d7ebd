"""Tokens of registries, for one scope each: bought with the password, held on the host until they end."""

from __future__ import annotations

import time
from collections import OrderedDict

import anyio

from moat.config import UpstreamConfig
from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.grants import Credential, grant_of
from moat.vault.imported import Renewing
from moat.vault.providers.docker import service_of, username_of
from moat.vault.registry.service import buy

_MOST = 256  # scopes whose tokens are held
_USED = 0.8  # of a token's life: a request that waits must not find its token ended
_PAUSE = 10.0  # seconds before the service is asked again for what was refused: accounts get locked


@dataclass(frozen=True, slots=True)
class _Bought:
    password: Credential  # what with
    outcome: Credential | GrantError
    since: float  # on the monotonic clock, as the end
    until: float


class RegistryTokens:
    """A CredentialSource in front of another one; the names of `part_of` are its own."""

    def __init__(self, upstream: UpstreamConfig, rest: Renewing) -> None:
        self._upstream = upstream
        self._rest = rest
        self._bought: OrderedDict[str, _Bought] = OrderedDict()
        self._buying: dict[str, anyio.Lock] = {}  # by grant

    async def credential(self, name: str) -> Credential:
        """Its secret is the token. One is bought for all who want the same. Raises GrantError, VaultError."""
        grant = grant_of(name)
        password = await self._rest.credential(grant)
        if name == grant:
            return password
        bought = self._good(name, password)
        if bought is None:
            async with self._buying.setdefault(grant, anyio.Lock()):
                bought = self._good(name, password) or await self._buy(name, password)
        if isinstance(bought.outcome, GrantError):
            raise GrantError(f"{grant}: {bought.outcome}", hint=bought.outcome.hint)
        return bought.outcome

    def rejected(self, name: str) -> bool:
        """The registry did not take a token; fresh ones are kept, for an account may not do everything."""
        old = time.monotonic() - _PAUSE
        for each in [
            each for each, one in self._bought.items() if grant_of(each) == name and one.since < old
        ]:
            del self._bought[each]
        return self._rest.rejected(name)

    def _good(self, name: str, password: Credential) -> _Bought | None:
        bought = self._bought.get(name)
        if bought is None or bought.password != password or time.monotonic() >= bought.until:
            return None
        return bought

    async def _buy(self, name: str, password: Credential) -> _Bought:
        info, scope = password.info, name.removeprefix(grant_of(name)).strip()
        start = time.monotonic()
        try:
            token = await buy(service_of(info), username_of(info), password.secret, scope, self._upstream)
            bought = _Bought(password, Credential(info, token.secret), start, start + token.life * _USED)
        except GrantError as error:
            bought = _Bought(password, error, start, time.monotonic() + _PAUSE)
        self._bought[name] = bought
        self._bought.move_to_end(name)
        if len(self._bought) > _MOST:
            self._bought.popitem(last=False)
        return bought
