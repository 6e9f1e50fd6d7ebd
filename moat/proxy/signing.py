"""Requests of AWS clients: signed in the sandbox with the run's placeholder keys, signed anew here. Pure.

A request goes on with the real keys only if its signature was made with the run's own. Region, service and
what is covered are taken from it; AWS checks them once more against the new one. What is signed with somebody
else's key, or not at all, passes as it came: nothing of the run's is on it.
"""

from __future__ import annotations

import datetime as dt
import hmac
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes

from moat.dataclass import dataclass
from moat.grants import Credential, SigningRule
from moat.proxy.events import Denial, DeniedError
from moat.proxy.fields import Headers, join_fields, split_fields
from moat.proxy.inject import InjectionError
from moat.rules import HostPattern, parse_host_pattern
from moat.sigv4 import (
    TIME,
    UNSIGNED,
    Keys,
    Request,
    Scope,
    authorization,
    escaped_path,
    payload_hash,
    wire_path,
)

LONGEST_BODY = 32 * 1024 * 1024  # bytes of a body whose hash is signed without being told in a header
TOO_LONG = (
    f"a request to AWS whose body has to be read before it can be signed has at most {LONGEST_BODY} bytes"
)
SIGNED_FIELDS = frozenset({b"authorization", b"x-amz-date", b"x-amz-security-token"})
# Words that stand for the hash of a body and need no signature in it.
_UNSIGNED_BODIES = frozenset({UNSIGNED, b"STREAMING-UNSIGNED-PAYLOAD-TRAILER"})
_HASH = re.compile(rb"[0-9a-f]{64}")
_SCOPE = rb"(?P<key_id>\w+)/(?P<date>[0-9]{8})/(?P<region>[a-z0-9-]+)/(?P<service>[a-z0-9-]+)/aws4_request"
_NAMES = rb"[a-z0-9;!#$%&'*+.^_`|~-]+"
_HEADER = re.compile(
    rb"AWS4-HMAC-SHA256 +Credential=%b, *SignedHeaders=(?P<signed>%b), *Signature=(?P<value>[0-9a-f]{64})"
    % (_SCOPE, _NAMES)
)
_TIME = re.compile(rb"[0-9]{8}T[0-9]{6}Z")
_IN_QUERY = {
    b"x-amz-algorithm": b"AWS4-HMAC-SHA256",
    b"x-amz-credential": _SCOPE,
    b"x-amz-date": _TIME.pattern,
    b"x-amz-expires": rb"[1-9][0-9]{0,5}",
    b"x-amz-signedheaders": _NAMES,
    b"x-amz-signature": _HASH.pattern,
}
_REPLACED = frozenset({
    b"x-amz-credential", b"x-amz-date", b"x-amz-expires", b"x-amz-signature", b"x-amz-security-token",
})  # fmt: skip
_FORMS = frozenset({b"application/x-www-form-urlencoded", b"application/x-www-form-urlencoded;charset=utf-8"})
# STS hands out keys, which would then be in the sandbox; these actions do not.
_HARMLESS = frozenset({"GetCallerIdentity", "GetAccessKeyInfo", "DecodeAuthorizationMessage"})


@dataclass(frozen=True, slots=True)
class Signature:
    """What a client has signed, and how."""

    credential: str
    method: bytes
    path: bytes  # on the wire
    query: bytes  # on the wire, without `X-Amz-Signature`
    headers: Headers  # that it says are signed
    scope: Scope
    time: bytes
    value: bytes
    payload: bytes  # its hash, or a word for it; empty: of the body as it comes
    ends: float | None = None  # of a pre-signed URL: seconds since the epoch
    formed: bool = True  # its head says nothing else of a body than that it is a form
    escaped: bool = False  # whether the path is signed escaped once more; known when checked

    @property
    def needs_body(self) -> bool:
        return not self.payload or self.scope.service == b"sts"

    def request(self, payload: bytes, *, escaped: bool) -> Request:
        path = escaped_path(self.path) if escaped else wire_path(self.path)
        return Request(self.method, path, self.query, self.headers, payload)


class Signed(NamedTuple):
    """A request with its real signature."""

    target: bytes
    fields: bytes
    secrets: tuple[bytes, ...]  # what must not come back


@dataclass(frozen=True, slots=True)
class Signer:
    """A SigningRule, ready for requests."""

    rule: SigningRule
    patterns: tuple[HostPattern, ...]
    placeholder: bytes

    @classmethod
    def of(cls, rule: SigningRule) -> Signer:
        """Raises ValueError for a host pattern that is none."""
        return cls(rule, tuple(parse_host_pattern(host) for host in rule.hosts), rule.key_id.encode())

    def bound_to(self, host: str, port: int, scheme: str) -> bool:
        """As of `inject.CompiledRule`: over TLS only."""
        return (
            scheme == "https"
            and port in self.rule.ports
            and any(pattern.names(host) and pattern.port in {None, port} for pattern in self.patterns)
        )

    def read(self, method: bytes, target: bytes, headers: Headers) -> Signature | None:
        """What is signed with the run's key; None: nothing is. Raises DeniedError."""
        path, _, query = target.partition(b"?")
        fields = [value for name, value in headers if name.lower() == b"authorization"]
        in_query = self.placeholder in unquote_to_bytes(query)
        if not in_query and not any(self.placeholder in value for value in fields):
            return None
        if in_query and fields:
            raise _refused("it is signed twice, in its query and in a header")
        draft = self._in_query(query) if in_query else self._in_header(fields, headers)
        signed = frozenset(draft["signed"].split(b";"))
        scope = Scope(draft["date"], draft["region"], draft["service"])
        covered = tuple(field for field in headers if field[0].lower() in signed)
        # What is named and not sent is not covered: a signature without its host is good at any.
        hosted = any(name.lower() == b"host" for name, _ in covered)
        if not hosted or not draft["time"].startswith(scope.date):
            raise _refused("its signature does not cover the host, or is for another day than it says")
        return Signature(
            self.rule.credential,
            method,
            path,
            b"&".join(part for part in query.split(b"&") if _name(part) != b"x-amz-signature"),
            covered,
            scope,
            draft["time"],
            draft["value"],
            _payload(headers, presigned=in_query),
            _end(draft) if in_query else None,
            formed=_formed(headers),
        )

    def check(self, signature: Signature, body: bytes, now: float) -> Signature:
        """`signature`, which was made with the run's key for this request. Raises DeniedError."""
        if signature.scope.service == b"sts":
            _check_sts(signature, body)
        if signature.ends is not None and signature.ends <= now:
            raise _refused("the pre-signed URL has ended")
        payloads = [signature.payload or payload_hash(body)]
        if signature.ends is not None:
            payloads.append(payload_hash(b""))  # S3 leaves the body out, the others sign that there is none
        keys = Keys(self.rule.key_id, self.rule.key)
        for payload in payloads:
            for escaped in (False, True):  # S3's way, and that of the others: the client knows
                request = signature.request(payload, escaped=escaped)
                if hmac.compare_digest(
                    request.signature(keys, signature.scope, signature.time), signature.value
                ):
                    return replace(signature, payload=payload, escaped=escaped)
        raise _refused("its signature was not made with the key of this run, or not for this request")

    def _in_header(self, fields: Sequence[bytes], headers: Headers) -> dict[str, bytes]:
        match = _HEADER.fullmatch(fields[0]) if len(fields) == 1 else None
        times = [value for name, value in headers if name.lower() == b"x-amz-date"]
        if match is None or match["key_id"] != self.placeholder:
            raise _refused("only AWS4-HMAC-SHA256 signatures can be replaced (no SigV2, no SigV4A)")
        if len(times) != 1 or not _TIME.fullmatch(times[0]):
            raise _refused("it has no X-Amz-Date")
        return {**match.groupdict(), "time": times[0]}

    def _in_query(self, query: bytes) -> dict[str, bytes]:
        values: dict[bytes, bytes] = {}
        for part in query.split(b"&"):
            name = _name(part)
            if name in values and name in _IN_QUERY:
                raise _refused("a parameter of its signature is there twice")
            values[name] = unquote_to_bytes(part.partition(b"=")[2])
        for name, shape in _IN_QUERY.items():
            if not re.fullmatch(shape, values.get(name, b"")):
                raise _refused("only AWS4-HMAC-SHA256 signatures can be replaced (no SigV2, no SigV4A)")
        scope = re.fullmatch(_SCOPE, values[b"x-amz-credential"])
        assert scope is not None
        if scope["key_id"] != self.placeholder:
            raise _refused("its signature names another key")
        return {
            **scope.groupdict(),
            "time": values[b"x-amz-date"],
            "expires": values[b"x-amz-expires"],
            "signed": values[b"x-amz-signedheaders"],
            "value": values[b"x-amz-signature"],
        }


def sign(signature: Signature, fields: bytes, credential: Credential, now: float) -> Signed:
    """The request with these fields, signed for the same with the real keys. Raises InjectionError.

    The time is the host's: what the sandbox signs for tomorrow is not good tomorrow.
    """
    try:
        keys = Keys.load(credential.secret.reveal())
    except ValueError as error:
        raise InjectionError(f"the credential of grant {signature.credential} is {error}") from None
    time = dt.datetime.fromtimestamp(now, dt.UTC).strftime(TIME).encode()
    scope = replace(signature.scope, date=time[:8])
    covered = {name.lower() for name, _ in signature.headers}
    headers = [field for field in split_fields(fields) if field[0].lower() not in SIGNED_FIELDS]
    secrets = (keys.token.encode(), keys.key_id.encode()) if keys.token else (keys.key_id.encode(),)
    if signature.ends is not None:
        query = _presigned(signature, keys, scope, time, int(signature.ends - now))
        again = replace(signature, query=query, headers=_those(headers, covered))
        value = again.request(signature.payload, escaped=signature.escaped).signature(keys, scope, time)
        return Signed(
            b"%b?%b&X-Amz-Signature=%b" % (signature.path, query, value), join_fields(headers), secrets
        )
    headers.append((b"X-Amz-Date", time))
    if keys.token:
        headers.append((b"X-Amz-Security-Token", keys.token.encode()))
    covered |= {b"x-amz-date", b"x-amz-security-token"}
    again = replace(signature, headers=_those(headers, covered))
    value = again.request(signature.payload, escaped=signature.escaped).signature(keys, scope, time)
    names = [name.lower() for name, _ in again.headers]
    headers.append((b"Authorization", authorization(keys.key_id, scope, names, value)))
    target = signature.path + (b"?" + signature.query if signature.query else b"")
    return Signed(target, join_fields(headers), secrets)


def _presigned(signature: Signature, keys: Keys, scope: Scope, time: bytes, left: int) -> bytes:
    kept = [part for part in signature.query.split(b"&") if _name(part) not in _REPLACED]
    credential = quote_from_bytes(keys.key_id.encode() + b"/" + bytes(scope), safe="").encode()
    kept += [b"X-Amz-Credential=" + credential, b"X-Amz-Date=" + time, b"X-Amz-Expires=%d" % max(left, 1)]
    if keys.token:
        kept.append(b"X-Amz-Security-Token=" + quote_from_bytes(keys.token.encode(), safe="").encode())
    return b"&".join(kept)


def _those(headers: Sequence[tuple[bytes, bytes]], names: set[bytes]) -> Headers:
    """Those that are covered and go out: the proxy has taken away what is between two hops only."""
    return tuple(field for field in headers if field[0].lower() in names)


def _payload(headers: Headers, *, presigned: bool) -> bytes:
    told = [value for name, value in headers if name.lower() == b"x-amz-content-sha256"]
    if not told:
        return UNSIGNED if presigned else b""
    if len(told) > 1 or not (told[0] in _UNSIGNED_BODIES or _HASH.fullmatch(told[0])):
        raise _refused(
            "signatures inside of a body cannot be replaced (X-Amz-Content-Sha256)",
            "let the client sign the body as a whole, or not at all: UNSIGNED-PAYLOAD, "
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        )
    return told[0]


def _end(draft: dict[str, bytes]) -> float:
    try:
        made = dt.datetime.strptime(draft["time"].decode(), TIME).replace(tzinfo=dt.UTC)
    except ValueError:
        raise _refused("its time is none") from None
    return made.timestamp() + int(draft["expires"])


def _check_sts(signature: Signature, body: bytes) -> None:
    """Raises DeniedError unless it is plainly an action that gives out no keys."""
    actions = _actions(body) if body else _actions(signature.query)
    others = actions | _actions(signature.query)
    if not actions or others - _HARMLESS or not signature.formed or signature.path not in {b"", b"/"}:
        raise _refused(
            "STS would answer with keys, and those would be in the sandbox",
            f"allowed are {', '.join(sorted(_HARMLESS))}; another role is another grant",
        )


def _formed(headers: Headers) -> bool:
    """Whether a body is a form in UTF-8 for everybody: in another coding it could hold another action."""
    kinds = [value.lower().replace(b" ", b"") for name, value in headers if name.lower() == b"content-type"]
    others = any(name.lower() in {b"x-amz-target", b"content-encoding"} for name, _ in headers)
    return not others and all(kind in _FORMS for kind in kinds)


def _actions(form: bytes) -> set[str]:
    try:
        fields = parse_qsl(form.decode("latin-1"), max_num_fields=64)
    except ValueError:
        return {""}
    return {value for name, value in fields if name.lower() == "action"}


def _name(part: bytes) -> bytes:
    return unquote_to_bytes(part.partition(b"=")[0]).lower()


def _refused(
    why: str, hint: str = "use the keys of the sandbox (AWS_ACCESS_KEY_ID) and an AWS SDK"
) -> DeniedError:
    return DeniedError(
        Denial(
            code="signature",
            reason=f"the request to AWS cannot be signed with the run's role: {why}",
            rule="requests that are signed with the run's key are signed anew",
            hint=hint,
        )
    )
