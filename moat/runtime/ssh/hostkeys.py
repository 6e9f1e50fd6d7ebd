"""Host keys: which ones known_hosts files give a host, and whether a key signed something.

What is understood is what sshd(8) describes: lists, wildcards, negation, hashed names, `[host]:port`,
`@revoked`, `@cert-authority`.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from moat.dataclass import dataclass
from moat.runtime.ssh.certificates import certified
from moat.sshwire import Fields, WireError, key_type

_BRACKETS = re.compile(r"([\[\]])")
_HASHES = {"rsa-sha2-256": "SHA256", "rsa-sha2-512": "SHA512"}  # SHA-1 (`ssh-rsa`) proves nothing any more
_CURVES = {
    "ecdsa-sha2-nistp256": "SHA256",
    "ecdsa-sha2-nistp384": "SHA384",
    "ecdsa-sha2-nistp521": "SHA512",
}
TYPES = frozenset({"ssh-ed25519", "ssh-rsa", *_CURVES})  # that can be verified


@dataclass(frozen=True, slots=True)
class HostKeys:
    """What is known of one host: keys and authorities without the revoked ones, in the order of the files."""

    name: str = ""  # in certificates, which name no port
    keys: tuple[bytes, ...] = ()
    authorities: tuple[bytes, ...] = ()  # that may vouch for a key of the host
    revoked: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        """Whether the host could be told from another one."""
        return bool(self.keys or self.authorities)

    def proven(self, key: bytes, now: float) -> bytes | None:
        """The key that a host with `key`, or with that certificate, signs with; None: it is not this host."""
        if key in self.keys:
            return key
        if not self.authorities:
            return None
        return certified(key, name=self.name, authorities=self.authorities, revoked=self.revoked, now=now)


def known_as(hostname: str, port: int) -> str:
    """How known_hosts names a host: the port only when it is not 22."""
    return hostname if port == 22 else f"[{hostname}]:{port}"


def look_up(name: str, files: Iterable[str]) -> HostKeys:
    """What `files` say of the host that they know as `name`. A file that is not there says nothing."""
    keys: dict[bytes, None] = {}
    authorities: dict[bytes, None] = {}
    revoked: set[bytes] = set()
    for path in files:
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            marker, key = _read(line, name)
            if key is None:
                continue
            if marker == "@revoked":
                revoked.add(key)
            elif marker == "@cert-authority":
                authorities[key] = None
            elif not marker:
                keys[key] = None
    return HostKeys(
        _plain_name(name),
        tuple(key for key in keys if key not in revoked),
        tuple(key for key in authorities if key not in revoked),
        frozenset(revoked),
    )


def _plain_name(name: str) -> str:
    return name[1:].rpartition("]:")[0].lower() if name.startswith("[") else name.lower()


def lines(name: str, known: HostKeys) -> list[str]:
    """Lines of known_hosts that say the same of a host, not hashed."""
    found = [("", key) for key in known.keys] + [("@cert-authority ", key) for key in known.authorities]
    found += [("@revoked ", key) for key in sorted(known.revoked)]
    return [
        f"{marker}{name} {key_type(key)} {base64.b64encode(key).decode('ascii')}\n" for marker, key in found
    ]


def _read(text: str, name: str) -> tuple[str, bytes | None]:
    """The marker of a line and its key, when the line is about `name`."""
    words = text.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#") or not _is_about(words[0], name):
        return marker, None
    try:
        key = base64.b64decode(words[2], validate=True)
        if key_type(key) != words[1]:
            return marker, None
    except (binascii.Error, WireError):
        return marker, None
    return marker, key


def _is_about(field: str, name: str) -> bool:
    if field.startswith("|1|"):
        return _is_hash_of(field, name)
    name, found = name.lower(), False
    for pattern in field.lower().split(","):
        negated, plain = pattern.startswith("!"), pattern.removeprefix("!")
        # Only * and ? are special in known_hosts; brackets stand for themselves.
        if fnmatch.fnmatchcase(name, _BRACKETS.sub(r"[\1]", plain)):
            if negated:
                return False
            found = True
    return found


def _is_hash_of(field: str, name: str) -> bool:
    parts = field.split("|")
    if len(parts) != 4:
        return False
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
    except binascii.Error:
        return False
    # HMAC-SHA1 is what the format has; it hides names, nothing depends on its strength.
    return hmac.compare_digest(hmac.digest(salt, name.encode(), hashlib.sha1), digest)


def verify(key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the private half of `key` signed `data`. False for kinds of keys that are not known."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        _verify(key, signature, data)
    except (InvalidSignature, UnsupportedAlgorithm, WireError, ValueError):
        return False
    return True


def _verify(key: bytes, signature: bytes, data: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    kind = key_type(key)
    if kind not in TYPES:
        raise WireError("a kind of host key that is not known")
    fields = Fields(signature)
    algorithm, blob = fields.text(), fields.string()
    fields.end()
    public = load_ssh_public_key(kind.encode() + b" " + base64.b64encode(key))
    if isinstance(public, rsa.RSAPublicKey) and algorithm in _HASHES:
        public.verify(blob, data, padding.PKCS1v15(), getattr(hashes, _HASHES[algorithm])())
    elif isinstance(public, ed25519.Ed25519PublicKey) and algorithm == kind:
        public.verify(blob, data)
    elif isinstance(public, ec.EllipticCurvePublicKey) and algorithm == kind:
        numbers = Fields(blob)
        r, s = (int.from_bytes(numbers.string(), "big") for _ in range(2))
        numbers.end()
        public.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(getattr(hashes, _CURVES[algorithm])()))
    else:
        raise WireError("the signature is of another kind than the key")
