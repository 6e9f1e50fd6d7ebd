"""The key of the sealed files: from a passphrase (scrypt) or from a key file of mode 0600.

Where a passphrase comes from, in order: MOAT_PASSPHRASE_FD (a descriptor, read to its end),
MOAT_PASSPHRASE, the user. A key file is MOAT_KEY_FILE, or the one named when the vault was made.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from moat.dataclass import dataclass
from moat.errors import VaultError
from moat.grants import Secret
from moat.paths import create_file, private_dir
from moat.vault.index import Sealing

KEY_BYTES = 32
_WITHHELD = ("MOAT_PASSPHRASE", "MOAT_PASSPHRASE_FD")
# scrypt with 128 MiB: about half a second once per command, and as much for every guess of an attacker.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 17, 8, 1


@dataclass(frozen=True, slots=True)
class NewKey:
    """What the user chose to protect new sealed files with: a passphrase, or else a key file."""

    passphrase: Secret | None = None
    key_file: Path | None = None  # None: the default one


@dataclass(frozen=True, slots=True)
class Asking:
    """How the user can be asked. None: there is nobody to ask."""

    passphrase: Callable[[], str] | None = None
    new_key: Callable[[], NewKey] | None = None


class KeyFinder:
    """Finds or makes the sealing key. Remembers a passphrase, so that nobody is asked twice."""

    def __init__(self, default_file: Path, asking: Asking) -> None:
        self._default_file = default_file
        self._asking = asking
        self._passphrase: Secret | None = None

    def find(self, sealing: Sealing, *, again: bool = False) -> tuple[bytes, bool]:
        """(key of existing sealed files, unchecked; whether the user was asked for it).

        again: what was found before was wrong. Raises VaultError when there is no way to a key.
        """
        if sealing.source == "key-file":
            return read_key_file(self._key_file(sealing)), False
        known = None if again else self._known_passphrase()
        asked = known is None and self._asking.passphrase is not None
        if known is None and self._asking.passphrase is not None:
            known = self._passphrase = Secret(self._asking.passphrase())
        if known is None:
            raise VaultError(
                "the sealed credentials need their passphrase",
                hint="set MOAT_PASSPHRASE, or MOAT_PASSPHRASE_FD to a descriptor that yields it",
            )
        return derive(known, sealing.salt), asked

    def make(self, choice: NewKey) -> tuple[Sealing, bytes]:
        """A key for the first sealed file. Raises VaultError."""
        salt = os.urandom(16)
        if choice.passphrase is not None:
            self._passphrase = choice.passphrase
            return Sealing("passphrase", salt), derive(choice.passphrase, salt)
        path = choice.key_file or self._default_file
        recorded = None if path == self._default_file else str(path.absolute())
        return Sealing("key-file", salt, path=recorded), create_key_file(path)

    def choose(self) -> NewKey:
        """How the first sealed file shall be protected: the environment says it, or the user.

        Raises VaultError, for a key file that could not be used as well.
        """
        choice = self._choice()
        path = choice.key_file or self._default_file
        if choice.passphrase is None and path.exists():
            read_key_file(path)
        return choice

    def _choice(self) -> NewKey:
        known = self._known_passphrase()
        if known is not None:
            return NewKey(passphrase=known)
        named = os.environ.get("MOAT_KEY_FILE")
        if named:
            return NewKey(key_file=Path(named).expanduser())
        if self._asking.new_key is not None:
            return self._asking.new_key()
        raise VaultError(
            "sealed files need a passphrase or a key file",
            hint=f"set MOAT_PASSPHRASE, or MOAT_KEY_FILE={self._default_file} to have a key file made",
        )

    def _known_passphrase(self) -> Secret | None:
        if self._passphrase is None:
            text = _environment_passphrase()
            self._passphrase = None if text is None else Secret(text)
        return self._passphrase

    def _key_file(self, sealing: Sealing) -> Path:
        moved = os.environ.get("MOAT_KEY_FILE")
        if moved:
            return Path(moved).expanduser()
        return Path(sealing.path) if sealing.path else self._default_file


def derive(passphrase: Secret, salt: bytes) -> bytes:
    """The key of a passphrase. Raises VaultError for an empty one."""
    text = passphrase.reveal()
    if not text:
        raise VaultError("the passphrase is empty", hint="set MOAT_PASSPHRASE, or type one")
    return hashlib.scrypt(
        text.encode(),
        salt=salt,
        n=_SCRYPT_N,
        r=_SCRYPT_R,
        p=_SCRYPT_P,
        maxmem=256 * _SCRYPT_N * _SCRYPT_R,
        dklen=KEY_BYTES,
    )


def read_key_file(path: Path) -> bytes:
    """The key in `path`. Refuses a file that anybody else can read, or that somebody else owns."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise VaultError(
            f"the key file {path} is gone", hint="restore it, or point MOAT_KEY_FILE at a copy"
        ) from None
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise VaultError(f"the key file {path} is not a regular file")
        if info.st_uid not in {os.getuid(), 0}:
            raise VaultError(f"the key file {path} belongs to another user", hint=f"chown it: {path}")
        if info.st_mode & 0o077:
            raise VaultError(f"the key file {path} is open to other users", hint=f"chmod 600 {path}")
        text = file.read(4096)
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise VaultError(f"{path} is not a key file", hint=f"it holds {KEY_BYTES} random bytes in base64")
    return key


def create_key_file(path: Path) -> bytes:
    """A new key in `path` (0600), or the key that is there already: an existing one is never replaced."""
    if not path.parent.exists():
        private_dir(path.parent)
    key = os.urandom(KEY_BYTES)
    try:
        create_file(path, base64.b64encode(key) + b"\n")
    except FileExistsError:
        return read_key_file(path)
    return key


def without_passphrase(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For a program that is asked for a credential: that of the sealed files is none of its business."""
    return {name: value for name, value in environment.items() if name not in _WITHHELD}


def _environment_passphrase() -> str | None:
    number = os.environ.get("MOAT_PASSPHRASE_FD")
    if number:
        return _read_descriptor(number)
    return os.environ.get("MOAT_PASSPHRASE") or None


def _read_descriptor(number: str) -> str:
    try:
        with os.fdopen(int(number), "rb") as file:
            text = file.read(65536).decode()
    except (ValueError, OSError):
        raise VaultError(
            f"MOAT_PASSPHRASE_FD={number} cannot be read", hint="pass an open descriptor: `… 3<file`"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
