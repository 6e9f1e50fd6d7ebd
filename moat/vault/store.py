"""The vault: put, get, list, delete, and the credential source of a running proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from moat.grants import Credential, CredentialInfo
from moat.paths import Home


def open_vault(
    home: Home, *, passphrase: Callable[[], str] | None = None, handoff: bytes | None = None
) -> Vault:
    """The vault of `home` and of the profile in MOAT_PROFILE. Touches no store until a secret is needed.

    passphrase: asks the user (sealed files only); without it only the environment is consulted.
    handoff: what `Vault.handoff()` of another process returned; with it nothing is ever asked.
    """
    raise NotImplementedError


class Vault:
    def put(self, credential: Credential) -> None:
        """Store `credential` under its name, replacing another one. Raises VaultError."""
        raise NotImplementedError

    def get(self, name: str) -> Credential:
        """The credential of a grant, by name or alias. Raises GrantError (none), VaultError."""
        raise NotImplementedError

    def info(self, name: str) -> CredentialInfo:
        """What may be shown of a credential. Reads the index only. Raises GrantError."""
        raise NotImplementedError

    def list(self) -> tuple[CredentialInfo, ...]:
        """Every credential, by name. Reads the index only."""
        raise NotImplementedError

    def delete(self, name: str) -> CredentialInfo:
        """Forget a credential. Raises GrantError (none), VaultError."""
        raise NotImplementedError

    def location(self, name: str) -> str:
        """Where the secret lies, for a message: a path, or the OS keyring."""
        raise NotImplementedError

    def handoff(self, names: Iterable[str] | None = None) -> bytes:
        """What another process needs to open this vault without asking; b"" when nothing.

        names: the credentials that it will read (None: all). May ask for the passphrase. Secret: pass it
        through a pipe, never through argv or the environment.
        """
        raise NotImplementedError

    async def credential(self, name: str) -> Credential:
        """As `get`, for the proxy: cached, re-read after a new grant, never blocks the loop.

        Raises GrantError when there is none or it has expired, VaultError.
        """
        raise NotImplementedError
