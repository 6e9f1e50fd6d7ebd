"""AWS Signature Version 4: what is signed, and with which key. Pure; for the vault's own call and the proxy.

Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference, and the IAM User Guide.
All is bytes as they are on the wire. Nothing here sends or keeps a key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote_from_bytes, unquote_to_bytes

from moat.dataclass import dataclass

ALGORITHM = b"AWS4-HMAC-SHA256"
UNSIGNED = b"UNSIGNED-PAYLOAD"
TIME = "%Y%m%dT%H%M%SZ"  # of X-Amz-Date, UTC
_SPACES = re.compile(rb"[ \t]+")


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """What requests are signed with."""

    key_id: str
    secret: str
    token: str = ""  # of a session; long-lived keys have none

    def __repr__(self) -> str:
        return "Keys(…)"

    def dump(self) -> str:
        """For a `Secret`."""
        return json.dumps([self.key_id, self.secret, self.token])

    @classmethod
    def load(cls, text: str) -> Keys:
        """The reverse of `dump`. Raises ValueError."""
        try:
            key_id, secret, token = json.loads(text)
        except (ValueError, TypeError):
            raise ValueError("not the keys of an AWS role") from None  # its text would be the secret
        return cls(str(key_id), str(secret), str(token))


@dataclass(frozen=True, slots=True)
class Scope:
    """For which day, region and service a signature is good."""

    date: bytes  # YYYYMMDD
    region: bytes
    service: bytes

    def __bytes__(self) -> bytes:
        return b"/".join((self.date, self.region, self.service, b"aws4_request"))

    def key(self, secret: str) -> bytes:
        """The signing key."""
        key = b"AWS4" + secret.encode()
        for part in (self.date, self.region, self.service, b"aws4_request"):
            key = hmac.digest(key, part, "sha256")
        return key


@dataclass(frozen=True, slots=True)
class Request:
    """What a signature covers."""

    method: bytes
    path: bytes  # as it is signed: `wire_path` or `escaped_path` of that on the wire
    query: bytes  # without `X-Amz-Signature`
    headers: Sequence[tuple[bytes, bytes]]  # those that are signed; names in any case
    payload: bytes  # its SHA-256 in hex, or a word that stands for it

    def canonical(self) -> bytes:
        fields: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            fields.setdefault(name.lower(), []).append(_SPACES.sub(b" ", value.strip(b" \t")))
        lines = [b"%b:%b\n" % (name, b",".join(fields[name])) for name in sorted(fields)]
        parts = (self.method, self.path, canonical_query(self.query), b"".join(lines))
        return b"\n".join((*parts, b";".join(sorted(fields)), self.payload))

    def signature(self, keys: Keys, scope: Scope, time: bytes) -> bytes:
        """In hex. `time` as in X-Amz-Date."""
        digest = hashlib.sha256(self.canonical()).hexdigest().encode()
        text = b"\n".join((ALGORITHM, time, bytes(scope), digest))
        return hmac.new(scope.key(keys.secret), text, "sha256").hexdigest().encode()


def authorization(key_id: str, scope: Scope, signed: Iterable[bytes], signature: bytes) -> bytes:
    """The value of the Authorization header; `signed`: names of headers, lower case."""
    names = b";".join(sorted(set(signed)))
    credential = key_id.encode() + b"/" + bytes(scope)
    return b"%b Credential=%b, SignedHeaders=%b, Signature=%b" % (ALGORITHM, credential, names, signature)


def canonical_query(query: bytes) -> bytes:
    """Parameters encoded in the one way, in order."""
    pairs = [part.partition(b"=") for part in query.split(b"&") if part]
    return b"&".join(
        b"=".join(pair) for pair in sorted((_encoded(name), _encoded(value)) for name, _, value in pairs)
    )


def wire_path(path: bytes) -> bytes:
    """The path as S3 signs it: as it is on the wire."""
    return path or b"/"


def escaped_path(path: bytes) -> bytes:
    """The path as all other services sign it: without dot segments and double slashes, escaped once more."""
    kept: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del kept[-1:]
        elif part not in {b"", b"."}:
            kept.append(part)
    text = b"/" + b"/".join(kept)
    if kept and path.endswith(b"/"):
        text += b"/"
    return quote_from_bytes(text, safe="/-_.~").encode()


def payload_hash(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _encoded(text: bytes) -> bytes:
    return quote_from_bytes(unquote_to_bytes(text), safe="-_.~").encode()
