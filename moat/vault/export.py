"""Credentials of one profile as a file in age's format, for another machine. Plain text never leaves memory.

What age encrypts is JSON, `{"format": "moat-credentials/1", "credentials": […]}`: rows of the index, each
with its `secret`; one that is kept elsewhere, or by an SSH agent, has null there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from moat.dataclass import dataclass
from moat.errors import UsageError, VaultError
from moat.grants import Credential, CredentialInfo, Secret
from moat.vault.index import describe, restore
from moat.vault.providers import check_name
from moat.vault.store import Vault

LIMIT = 16 << 20  # bytes of a file
_FORMAT = "moat-credentials/1"


@dataclass(frozen=True, slots=True)
class Exported:
    info: CredentialInfo
    secret: Secret | None


def gather(vault: Vault) -> tuple[Exported, ...]:
    """Everything of a vault. May ask for the passphrase of sealed files. Raises VaultError."""
    infos = vault.list()
    return tuple(
        Exported(info, vault.get(info.name).secret if vault.store(info.name) else None) for info in infos
    )


def keep(vault: Vault, given: Exported) -> None:
    """Store one credential, replacing another one of its name. Raises VaultError, GrantError."""
    check_name(given.info.name)
    if given.secret is None:
        vault.note(given.info)
    else:
        vault.put(Credential(given.info, given.secret))


def seal(credentials: Iterable[Exported], lock: Secret | Sequence[str]) -> bytes:
    """The file's content. `lock`: a passphrase, or public keys (`age1…`, `ssh-ed25519 …`, `ssh-rsa …`).

    Raises UsageError for what is no public key.
    """
    import pyrage

    rows = [{**describe(one.info), "secret": one.secret and one.secret.reveal()} for one in credentials]
    text = json.dumps({"format": _FORMAT, "credentials": rows}).encode()
    if isinstance(lock, Secret):
        sealed: bytes = pyrage.passphrase.encrypt(text, lock.reveal())
    else:
        sealed = pyrage.encrypt(text, [_recipient(key) for key in lock])
    return sealed


def unseal(data: bytes, key: Secret, *, identity: bool = False) -> tuple[Exported, ...]:
    """The reverse. `key`: the passphrase; with `identity` the text of an age identity or an SSH private key.

    Raises VaultError, UsageError.
    """
    import pyrage

    try:
        if identity:
            text: bytes = pyrage.decrypt(data, _identities(key.reveal()))
        else:
            text = pyrage.passphrase.decrypt(data, key.reveal())
    except pyrage.DecryptError:
        raise VaultError(
            "the file cannot be opened: another key or passphrase, or it is damaged",
            hint="`moat vault import FILE` asks for a passphrase; --identity KEYFILE for a key",
        ) from None
    try:
        found = json.loads(text)
        rows = tuple(map(_restored, found["credentials"])) if found["format"] == _FORMAT else None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        rows = None  # not chained: the text of a JSON error may quote the file
    if rows is None:
        raise VaultError("the file holds no credentials of Moat, or is of a newer one", hint="update moat")
    return rows


def _restored(row: dict[str, Any]) -> Exported:
    secret = row["secret"]
    if secret is not None and not isinstance(secret, str):
        raise TypeError
    return Exported(restore(row), None if secret is None else Secret(secret))


def _recipient(key: str) -> Any:
    import pyrage

    try:
        if key.startswith("age1"):
            return pyrage.x25519.Recipient.from_str(key)
        return pyrage.ssh.Recipient.from_str(key)
    except pyrage.RecipientError:
        raise UsageError(
            f"--recipient {key[:100]!r} is no public key", hint="age1…, ssh-ed25519 … or ssh-rsa …"
        ) from None


def _identities(text: str) -> list[Any]:
    """The keys in an identity file. Raises UsageError when there is none that can be used."""
    import pyrage

    try:
        if "PRIVATE KEY-----" in text:
            return [pyrage.ssh.Identity.from_buffer(text.encode())]
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line.startswith("AGE-SECRET-KEY-1")]
        found = [pyrage.x25519.Identity.from_str(key) for key in keys]
    except pyrage.IdentityError:
        found = []
    if not found:
        raise UsageError(
            "--identity names no key that can be used",
            hint="a file of age-keygen, or an SSH private key without a passphrase",
        )
    return found
