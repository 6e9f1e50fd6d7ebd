"""The format of a sealed file: `credentials/<name>.enc`, AES-256-GCM.

    moat-sealed/1 LF
    {"name", "profile", "id", "key"} LF     JSON on one line, readable without the key
    nonce (12 bytes)  ciphertext  tag       over the payload, with both lines above as associated data

`key` names the sealing key (its salt); how the key is made from a passphrase stands in the index.
Whoever swaps, renames or edits a file meets the header check or the tag.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from moat.dataclass import dataclass

_MAGIC = b"moat-sealed/1\n"
_NONCE = 12
_HEADER_LIMIT = 4096  # bytes


class BrokenSealError(Exception):
    """The bytes are not what was sealed; the text says in which way."""


@dataclass(frozen=True, slots=True)
class Header:
    """Whose secret this is. Authenticated, not hidden."""

    name: str
    profile: str
    id: str
    key: str  # hex


def seal(key: bytes, header: Header, payload: bytes) -> bytes:
    """The whole file."""
    head = _MAGIC + json.dumps(asdict(header)).encode() + b"\n"
    return head + _encrypt(key, head, payload)


def read_header(data: bytes) -> tuple[Header, int]:
    """The header of a sealed file, not yet authenticated, and where it ends. Raises BrokenSealError."""
    end = data.find(b"\n", len(_MAGIC), len(_MAGIC) + _HEADER_LIMIT)
    if not data.startswith(_MAGIC) or end < 0:
        raise BrokenSealError("it is not a sealed file")
    try:
        fields = json.loads(data[len(_MAGIC) : end])
        header = Header(**{key: str(value) for key, value in fields.items()})
        bytes.fromhex(header.key)
    except (ValueError, TypeError, AttributeError):
        raise BrokenSealError("its header is broken") from None
    return header, end + 1


def unseal(key: bytes, data: bytes) -> bytes:
    """The payload of a sealed file. Raises BrokenSealError."""
    _, end = read_header(data)
    payload = _decrypt(key, data[:end], data[end:])
    if payload is None:
        raise BrokenSealError("its seal is broken")
    return payload


def make_check(key: bytes) -> bytes:
    """A value that tells a wrong key from a broken file."""
    return _encrypt(key, b"moat-check", b"")


def fits(key: bytes, check: bytes) -> bool:
    return _decrypt(key, b"moat-check", check) is not None


def _encrypt(key: bytes, associated: bytes, payload: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, payload, associated)


def _decrypt(key: bytes, associated: bytes, sealed: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], associated)
    except (InvalidTag, ValueError):
        return None
