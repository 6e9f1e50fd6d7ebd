"""SSH's data types (RFC 4251 §5), which tunnels, agents and key files are all written in. Pure."""

from __future__ import annotations

import base64
import hashlib
import struct


class WireError(ValueError):
    """The bytes are not what they should be. `str()` says why."""


class Fields:
    """A cursor over the fields of a message. Every method raises WireError where the bytes run out."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise WireError("a field is cut off")
        found = self._data[self._at : end]
        self._at = end
        return found

    def byte(self) -> int:
        return self.take(1)[0]

    def boolean(self) -> bool:
        return self.byte() != 0

    def uint32(self) -> int:
        (value,) = struct.unpack(">I", self.take(4))
        return int(value)

    def string(self) -> bytes:
        return self.take(self.uint32())

    def text(self) -> str:
        """A string that has to be printable ASCII: names of methods and algorithms."""
        data = self.string()
        if not data.isascii() or not data.decode("ascii").isprintable():
            raise WireError("a name is not printable ASCII")
        return data.decode("ascii")

    def end(self) -> None:
        if self._at != len(self._data):
            raise WireError("there is more than there should be")


def uint32(value: int) -> bytes:
    return struct.pack(">I", value)


def string(data: bytes) -> bytes:
    return uint32(len(data)) + data


def mpint(value: int) -> bytes:
    """A number that is not negative."""
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big") if value else b"")


def fingerprint(key: bytes) -> str:
    """`SHA256:…` of a public key, as `ssh-add -l` and `ssh-keygen -l` print it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")


def key_type(key: bytes) -> str:
    """`ssh-ed25519`, …: the first field of a public key. Raises WireError."""
    return Fields(key).text()
