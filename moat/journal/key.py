"""The Ed25519 key of this installation: `journal/key` (0600). It signs every entry, head and ledger line.

Whoever can read it can write a journal that nobody can tell from ours; the sandbox cannot. What holds
against somebody with this user's rights is the copy elsewhere (`journal.copy_to`).
"""

from __future__ import annotations

import base64
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from moat.errors import MoatError
from moat.paths import Home, private_dir

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PREFIX = "ed25519:"
_BYTES = 32


class Signer:
    """Signs. The private key is in no attribute that is shown."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._sign = key.sign
        self.public = _PREFIX + base64.b64encode(key.public_key().public_bytes_raw()).decode()

    def __call__(self, message: bytes) -> bytes:
        return self._sign(message)

    @classmethod
    def ephemeral(cls) -> Signer:
        """A key that nobody keeps."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())


def installation_key(home: Home) -> Signer:
    """The key, made when there is none: of several processes at once exactly one makes it.

    Raises MoatError when the file is not a key or others may read it, OSError when it cannot be made.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = _file(home)
    try:
        text = _read(path)
    except FileNotFoundError:
        _make(path)
        text = _read(path)
    seed = _bytes(text.strip())
    if seed is None:
        raise MoatError(f"{path} is not a journal key", hint="restore it from a backup")
    return Signer(Ed25519PrivateKey.from_private_bytes(seed))


def public_key(home: Home) -> str | None:
    """`ed25519:…` of this installation; None when it has no key yet."""
    return installation_key(home).public if _file(home).exists() else None


def verifies(public: str, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is of the key `public` (`ed25519:…`). A broken key verifies nothing."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _bytes(public)
    if raw is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_public_key(text: str) -> bool:
    return _bytes(text) is not None


def _file(home: Home) -> Path:
    return home.journal / "key"


def _read(path: Path) -> str:
    info = path.stat()
    if info.st_mode & 0o077 or info.st_uid != os.getuid():
        raise MoatError(f"others may read {path}", hint=f"chmod 600 {path}")
    return path.read_text(errors="replace")


def _make(path: Path) -> None:
    """Written whole beside it, then linked into place: link(2) refuses when somebody was quicker."""
    import tempfile  # 8 ms, once in the life of an installation

    private_dir(path.parent)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".key.")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(_PREFIX + base64.b64encode(os.urandom(_BYTES)).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _bytes(text: str) -> bytes | None:
    if not text.startswith(_PREFIX):
        return None
    try:
        raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        return None
    return raw if len(raw) == _BYTES else None
