"""What an `ssh:<host>` grant knows: a host and a key. Nothing of it is secret; the index holds all of it.

The private key stays where it is, in the user's SSH agent or in its file.
"""

from __future__ import annotations

import base64
import datetime as dt

from moat.dataclass import dataclass
from moat.errors import VaultError
from moat.grants import CredentialInfo, CredentialKind
from moat.sshwire import WireError, fingerprint, key_type

PREFIX = "ssh:"
DEFAULT_PORT = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class SshGrant:
    host: str  # as it is typed: `github.com`, or a name of ~/.ssh/config
    hostname: str  # where that leads; the host itself unless ~/.ssh/config says otherwise
    port: int = DEFAULT_PORT
    user: str = ""  # when ~/.ssh/config names one
    known_as: str  # how known_hosts files name it: `github.com`, `[git.example.com]:2222`
    known_hosts: tuple[str, ...]  # paths of the user's and the system's files
    key: bytes  # the public key, as SSH writes it
    comment: str = ""
    key_path: str = ""  # of the private key; empty: it is in an agent only
    agent: str = ""  # socket of the agent that ~/.ssh/config names (IdentityAgent); empty: SSH_AUTH_SOCK

    @property
    def name(self) -> str:
        return PREFIX + self.host

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)

    def info(self, now: dt.datetime) -> CredentialInfo:
        """The entry of the index."""
        metadata = {
            "hostname": self.hostname,
            "port": str(self.port),
            "user": self.user,
            "known_as": self.known_as,
            "known_hosts": "\n".join(self.known_hosts),
            "key_type": key_type(self.key),
            "fingerprint": self.fingerprint,
            "public_key": base64.b64encode(self.key).decode("ascii"),
            "comment": self.comment,
            "key_path": self.key_path,
            "agent": self.agent,
        }
        return CredentialInfo(
            name=self.name,
            kind=CredentialKind.SSH_KEY,
            hosts=(f"{self.hostname}:{self.port}",),
            created_at=now,
            metadata={key: value for key, value in metadata.items() if value},
        )

    @classmethod
    def of(cls, info: CredentialInfo) -> SshGrant:
        """The reverse of `info()`. Raises VaultError for an entry that is damaged."""
        data = info.metadata
        try:
            grant = cls(
                host=info.name.removeprefix(PREFIX),
                hostname=data["hostname"],
                port=int(data["port"]),
                user=data.get("user", ""),
                known_as=data["known_as"],
                known_hosts=tuple(data.get("known_hosts", "").splitlines()),
                key=base64.b64decode(data["public_key"], validate=True),
                comment=data.get("comment", ""),
                key_path=data.get("key_path", ""),
                agent=data.get("agent", ""),
            )
            key_type(grant.key)
        except (KeyError, ValueError, WireError):
            host = info.name.removeprefix(PREFIX)
            raise VaultError(
                f"the stored grant {info.name} is damaged", hint=f"run `moat grant ssh --host {host}`"
            ) from None
        return grant
