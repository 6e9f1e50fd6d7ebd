"""The SSH agent protocol (RFC 9987) as far as a run's agent speaks it: bytes to values and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from moat.dataclass import dataclass
from moat.sshwire import Fields, WireError, string, uint32

FAILURE, SUCCESS = 5, 6
REQUEST_IDENTITIES, IDENTITIES_ANSWER = 11, 12
SIGN_REQUEST, SIGN_RESPONSE = 13, 14
EXTENSION = 27
SESSION_BIND = "session-bind@openssh.com"

NAMES = {  # for the journal: what somebody tried who may not
    9: "remove-all-v1", 17: "add", 18: "remove", 19: "remove-all", 20: "add-smartcard",
    21: "remove-smartcard", 22: "lock", 23: "unlock", 25: "add-constrained", 26: "add-smartcard-constrained",
    EXTENSION: "extension",
}  # fmt: skip

RSA_SHA2_256, RSA_SHA2_512 = 2, 4  # flags of a sign request
_RSA_ALGORITHMS = {0: "ssh-rsa", RSA_SHA2_256: "rsa-sha2-256", RSA_SHA2_512: "rsa-sha2-512"}

_USERAUTH_REQUEST = 50
_PUBLIC_KEY = "publickey"
_HOST_BOUND = "publickey-hostbound-v00@openssh.com"


@dataclass(frozen=True, slots=True)
class Identity:
    key: bytes  # public
    comment: bytes


@dataclass(frozen=True, slots=True)
class SessionBind:
    """`session-bind@openssh.com`: the client says which session it is going to log in to."""

    host_key: bytes
    session: bytes
    signature: bytes  # of the session, by the host
    forwarding: bool  # the connection is going to be handed to that host


@dataclass(frozen=True, slots=True)
class SignRequest:
    key: bytes
    data: bytes
    flags: int


@dataclass(frozen=True, slots=True)
class UserAuth:
    """What is signed to log in (RFC 4252 §7)."""

    session: bytes
    user: str
    key: bytes
    host_key: bytes | None  # the host-bound variant repeats the host's key


def frame(payload: bytes) -> bytes:
    return string(payload)


def answer(kind: int, rest: bytes = b"") -> bytes:
    return frame(bytes([kind]) + rest)


def identities_answer(identities: Iterable[Identity]) -> bytes:
    listed = [string(identity.key) + string(identity.comment) for identity in identities]
    return answer(IDENTITIES_ANSWER, uint32(len(listed)) + b"".join(listed))


def read_identities(payload: bytes) -> tuple[Identity, ...]:
    """The payload of an identities answer. Raises WireError."""
    fields = Fields(payload)
    if fields.byte() != IDENTITIES_ANSWER:
        raise WireError("no list of identities")
    found = tuple(Identity(fields.string(), fields.string()) for _ in range(fields.uint32()))
    fields.end()
    return found


def sign_request(request: SignRequest) -> bytes:
    body = string(request.key) + string(request.data) + uint32(request.flags)
    return answer(SIGN_REQUEST, body)


def read_sign_response(payload: bytes) -> bytes:
    """The signature in the payload of a sign response. Raises WireError."""
    fields = Fields(payload)
    if fields.byte() != SIGN_RESPONSE:
        raise WireError("no signature")
    signature = fields.string()
    fields.end()
    return signature


def read_sign_request(fields: Fields) -> SignRequest:
    """What follows the message number. Raises WireError."""
    request = SignRequest(fields.string(), fields.string(), fields.uint32())
    fields.end()
    return request


def read_session_bind(fields: Fields) -> SessionBind:
    """What follows the extension's name. Raises WireError."""
    bind = SessionBind(fields.string(), fields.string(), fields.string(), fields.boolean())
    fields.end()
    return bind


def read_userauth(request: SignRequest) -> UserAuth:
    """The login that `request` is to sign. Raises WireError for anything else, such as a file."""
    fields = Fields(request.data)
    session = fields.string()
    if fields.byte() != _USERAUTH_REQUEST:
        raise WireError("this is not a request to log in")
    user = fields.string().decode("utf-8", "replace")
    service, method = fields.text(), fields.text()
    if service != "ssh-connection" or method not in {_PUBLIC_KEY, _HOST_BOUND} or not fields.boolean():
        raise WireError("this is not a request to log in with a key")
    algorithm, key = fields.text(), fields.string()
    host_key = fields.string() if method == _HOST_BOUND else None
    fields.end()
    if key != request.key:
        raise WireError("the request to log in names another key")
    if algorithm != _algorithm(key, request.flags):
        raise WireError("the request to log in names another algorithm")
    return UserAuth(session, user, key, host_key)


def _algorithm(key: bytes, flags: int) -> str:
    kind = Fields(key).text()
    if kind != "ssh-rsa":
        if flags:
            raise WireError("flags that this kind of key does not have")
        return kind
    if flags not in _RSA_ALGORITHMS:
        raise WireError("unknown flags")
    return _RSA_ALGORITHMS[flags]
