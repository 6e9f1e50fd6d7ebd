"""Private keys in files: which key it is, whether it is encrypted, and signing with one that is not."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.runtime.ssh.messages import RSA_SHA2_256, RSA_SHA2_512
from moat.sshwire import Fields, WireError, key_type, mpint, string

_LARGEST = 256 * 1024  # bytes; a file that is larger is no key
_MAGIC = b"openssh-key-v1\0"
_RSA_NAMES = {RSA_SHA2_256: b"rsa-sha2-256", RSA_SHA2_512: b"rsa-sha2-512"}
_BEGIN, _END = b"-----BEGIN OPENSSH PRIVATE KEY-----", b"-----END OPENSSH PRIVATE KEY-----"


class KeyFileError(Exception):
    """The file cannot be used. `str()` begins with its path."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    key: bytes
    comment: str = ""


def public_key(path: Path) -> PublicKey:
    """The public key of a private key file, encrypted or not, or of a `.pub` file. Raises KeyFileError."""
    data = _read(path)
    beside = path.with_name(f"{path.name}.pub")
    if not data.lstrip().startswith(b"-----BEGIN"):
        return _public(path, data)
    if _BEGIN in data:  # holds the public key in the clear
        found = _openssh_public(path, data)
        if beside.exists() and (other := _public(beside, _read(beside))).key == found:
            return other
        return PublicKey(found)
    if beside.exists():
        return _public(beside, _read(beside))
    return PublicKey(_public_of(_load(path, data)))


def check(path: Path, key: bytes) -> None:
    """Whether the file holds the private half of `key` and can be used without a passphrase.

    Raises KeyFileError.
    """
    if _public_of(_load(path, _read(path, private=True))) != key:
        raise KeyFileError(f"{path} holds another key now")


def sign(path: Path, key: bytes, data: bytes, flags: int) -> bytes:
    """The signature of `data`, as SSH writes it. Blocks. Raises KeyFileError."""
    private = _load(path, _read(path, private=True))
    if _public_of(private) != key:
        raise KeyFileError(f"{path} holds another key now")
    return _sign(path, private, data, flags)


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if private and info.st_uid == os.geteuid() and stat.S_IMODE(info.st_mode) & 0o077:
                raise KeyFileError(f"{path} can be read by others (ssh refuses it too): `chmod 600 {path}`")
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(data) > _LARGEST:
        raise KeyFileError(f"{path} is not a key")
    return data


def _public(path: Path, data: bytes) -> PublicKey:
    words = data.decode("utf-8", "replace").split(None, 2)
    try:
        key = base64.b64decode(words[1], validate=True)
        if key_type(key) == words[0]:
            return PublicKey(key, words[2].strip() if len(words) > 2 else "")
    except (IndexError, ValueError):
        pass
    raise KeyFileError(f"{path} is not a key")


def _openssh_public(path: Path, data: bytes) -> bytes:
    """PROTOCOL.key of OpenSSH: magic, cipher, kdf, its options, number of keys, public key."""
    try:
        inner = data.partition(_BEGIN)[2].partition(_END)[0]
        fields = Fields(base64.b64decode(b"".join(inner.split()), validate=True))
        if fields.take(len(_MAGIC)) != _MAGIC:
            raise WireError("bad magic")
        fields.string(), fields.string(), fields.string()
        if fields.uint32() != 1:
            raise WireError("not one key")
        key = fields.string()
        key_type(key)
    except ValueError:
        raise KeyFileError(f"{path} is damaged") from None
    return key


def _load(path: Path, data: bytes) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    load: Callable[..., Any] = load_ssh_private_key if _BEGIN in data else load_pem_private_key
    try:
        return load(data, password=None)
    except TypeError:  # what both say of a missing passphrase
        raise KeyFileError(f"{path} is encrypted") from None
    except UnsupportedAlgorithm:
        raise KeyFileError(f"{path} is of a kind that only an SSH agent can use") from None
    except ValueError as error:
        if "password" in str(error).lower() or "encrypted" in str(error).lower():
            raise KeyFileError(f"{path} is encrypted") from None
        raise KeyFileError(f"{path} is not a private key that can be used") from None


def _public_of(private: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    text: bytes = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(text.split()[1])


def _sign(path: Path, private: Any, data: bytes, flags: int) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

    if isinstance(private, ed25519.Ed25519PrivateKey):
        return string(b"ssh-ed25519") + string(private.sign(data))
    if isinstance(private, ec.EllipticCurvePrivateKey):
        bits = private.key_size
        digests = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
        if bits in digests:
            r, s = utils.decode_dss_signature(private.sign(data, ec.ECDSA(digests[bits])))
            return string(f"ecdsa-sha2-nistp{bits}".encode()) + string(mpint(r) + mpint(s))
    if isinstance(private, rsa.RSAPrivateKey):
        kinds = {RSA_SHA2_256: hashes.SHA256(), RSA_SHA2_512: hashes.SHA512()}
        if flags not in kinds:
            raise KeyFileError(f"{path} is not used for SHA-1 signatures: the server is too old")
        signature = private.sign(data, padding.PKCS1v15(), kinds[flags])
        return string(_RSA_NAMES[flags]) + string(signature)
    raise KeyFileError(f"{path} is of a kind that only an SSH agent can use")
