"""Requests of AWS clients, signed anew: by botocore in, by botocore checked.

Seen to fail: with `Signer.check` returning at once all of `test_what_is_not_signed_for` but the parsed ones; with
`_check_sts` empty the actions of STS; with the client's time in place of `now` `test_not_for_tomorrow`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from moat.grants import Credential, CredentialInfo, CredentialKind, InjectionRule, Secret, SigningRule
from moat.proxy import equipment
from moat.proxy.answers import denied
from moat.proxy.aws_errors import shaped
from moat.proxy.events import DeniedError
from moat.proxy.fields import Headers, join_fields, split_fields
from moat.proxy.inject import InjectionError
from moat.proxy.limits import Limits
from moat.proxy.mcp import McpTable
from moat.proxy.signing import Signed, Signer, sign
from moat.proxy.site_rules import InjectionTable
from moat.sigv4 import Keys, Request, Scope, authorization
from tests.fakes.aws import DYNAMO, REGION, S3, STS, FakeAws
from tests.proxy.conftest import SECRET, house, tls_origin
from tests.proxy.peers import Wire, reply
from tests.proxy.test_mcp import call, endpoint, post
from tests.vault.vendor import Asked

KEY_ID, KEY = "AKIAPLACEHOLDER00000", "moatPLACEHOLDER0000000000000000000000000"
RULE = SigningRule("aws", ("*.amazonaws.com",), KEY_ID, KEY)
SIGNER = Signer.of(RULE)
REAL = Credentials("ASIAREALREALREALREAL", "real-secret-key-0123456789", "real+token/==")
CREDENTIAL = Credential(
    CredentialInfo("aws", CredentialKind.ROLE, RULE.hosts, dt.datetime.now(dt.UTC)),
    Secret(Keys(REAL.access_key, REAL.secret_key, REAL.token).dump()),
)
FAKE = FakeAws(issued=[REAL])
IDENTITY = b"Action=GetCallerIdentity&Version=2011-06-15"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Client:
    """A request as it leaves a client that signs with `keys`."""

    def __init__(
        self,
        host: str,
        path: str = "/",
        body: bytes = b"",
        *,
        method: str = "GET",
        headers: Mapping[str, str] = {},
        presigned: int = 0,
        keys: tuple[str, str] = (KEY_ID, KEY),
        service: str = "",
    ) -> None:
        self.host, self.body, self.method = host, body, method.encode()
        service = service or {STS: "sts", DYNAMO: "dynamodb"}.get(host, "s3")
        s3 = service == "s3"
        request = AWSRequest(method, f"https://{host}{path}", {"Host": host, **headers}, body)
        if presigned:
            (S3SigV4QueryAuth if s3 else SigV4QueryAuth)(
                Credentials(*keys), service, REGION, expires=presigned
            ).add_auth(request)
        else:
            (S3SigV4Auth if s3 else SigV4Auth)(Credentials(*keys), service, REGION).add_auth(request)
        url = urlsplit(request.url)
        self.target = (url.path + (f"?{url.query}" if url.query else "")).encode()
        self.headers: Headers = tuple(
            (name.encode(), value.encode()) for name, value in request.headers.items()
        )

    def change(self, name: str, value: str) -> None:
        kept = tuple(field for field in self.headers if field[0].lower() != name.lower().encode())
        self.headers = (*kept, (name.encode(), value.encode()))

    def header(self, name: str) -> str:
        return next(value.decode() for key, value in self.headers if key.lower() == name.lower().encode())

    def through(self, now: float | None = None, signer: Signer = SIGNER) -> Signed:
        now = time.time() if now is None else now
        found = signer.read(self.method, self.target, self.headers)
        assert found is not None
        found = signer.check(found, self.body, now)
        return sign(found, join_fields(self.headers), CREDENTIAL, now)

    def taken(self, signed: Signed) -> object:
        headers = {name.decode().lower(): value.decode() for name, value in split_fields(signed.fields)}
        asked = Asked(self.host, self.method.decode(), signed.target.decode(), headers, self.body)
        return FAKE.signed_by(asked)


@pytest.mark.parametrize(
    "client",
    [
        Client(S3, "/bucket/a%20b/%C3%BC//x", headers={"Range": "bytes=0-9", "Accept-Encoding": "identity"}),
        Client(S3, "/bucket?list-type=2&prefix=a%2Fb&delimiter=", method="GET"),
        Client(S3, "/bucket/x", b"body", method="PUT"),
        Client(S3, "/bucket/x", presigned=86400),
        Client(S3, "/bucket/x", method="PUT", presigned=86400, headers={"X-Amz-Acl": "private"}),
        Client(DYNAMO, "/", b"{}", method="POST", headers={"X-Amz-Target": "DynamoDB_20120810.GetItem"}),
        Client(DYNAMO, "/a%20b/../c//d/?x=%20", b"{}", method="POST"),
        Client(STS, "/", IDENTITY, method="POST", headers=FORM),
        Client(
            STS,
            "/",
            IDENTITY,
            method="POST",
            headers={"Content-Type": f"{FORM['Content-Type']}; charset=UTF-8"},
        ),
        Client(STS, f"/?{IDENTITY.decode()}", presigned=86400),
    ],
    ids=[
        "get",
        "list",
        "put",
        "presigned",
        "presigned-put",
        "json",
        "path",
        "sts",
        "charset",
        "presigned-sts",
    ],
)
def test_what_a_client_signs_is_signed_anew(client: Client) -> None:
    signed = client.through()
    assert client.taken(signed) is REAL
    assert KEY_ID.encode() not in signed.target + signed.fields
    assert REAL.secret_key.encode() not in signed.target + signed.fields
    assert set(signed.secrets) == {REAL.access_key.encode(), REAL.token.encode()}


def changed(name: str, value: str, **options: object) -> Client:
    client = Client(S3, "/bucket/x", b"body", method="PUT", **options)
    client.change(name, value)
    return client


def other_target(path: str, **options: object) -> Client:
    client = Client(S3, "/bucket/x", **options)
    client.target = client.target.replace(b"/bucket/x", path.encode())
    return client


def without_host() -> Client:
    """As HTTP/1.0 may: its signature names the host and was made without one. Seen failing: so was ours."""
    client = Client(S3, "/bucket/x")
    time = client.header("X-Amz-Date").encode()
    client.headers = tuple(field for field in client.headers if field[0].startswith(b"X-Amz-"))
    scope, keys = Scope(time[:8], REGION.encode(), b"s3"), Keys(KEY_ID, KEY)
    payload = client.header("X-Amz-Content-SHA256").encode()
    value = Request(b"GET", b"/bucket/x", b"", client.headers, payload).signature(keys, scope, time)
    names = [b"host", *(name.lower() for name, _ in client.headers)]
    client.headers += ((b"Authorization", authorization(KEY_ID, scope, names, value)),)
    return client


def other_body() -> Client:
    client = Client(DYNAMO, "/", b"{}", method="POST")
    client.body = b"[]"
    return client


def rewritten(old: str, new: str) -> Client:
    client = Client(S3, "/bucket/x")
    client.change("Authorization", client.header("Authorization").replace(old, new))
    return client


@pytest.mark.parametrize(
    "make",
    [
        lambda: Client(S3, "/bucket/x", keys=(KEY_ID, "guessed")),
        lambda: Client(S3, "/bucket/x", keys=(KEY_ID, "guessed"), presigned=60),
        lambda: other_target("/bucket/y"),
        lambda: other_target("/bucket/x?acl"),
        lambda: other_target("/bucket/y", presigned=60),
        lambda: changed("Host", f"other.{S3}"),
        lambda: changed("X-Amz-Content-Sha256", "0" * 64),
        lambda: changed("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        lambda: changed("X-Amz-Date", "20200101T000000Z"),
        lambda: changed("Authorization", f"AWS {KEY_ID}:c2lnbmF0dXJl"),
        lambda: changed("Authorization", f"AWS4-ECDSA-P256-SHA256 Credential={KEY_ID}/20200101/s3/aws4_request"),
        other_body,
        without_host,
        lambda: rewritten("host;", ""),
        lambda: rewritten(f"/{REGION}/", "/us-east-1/"),
        lambda: rewritten("/s3/", "/sts/"),
        lambda: rewritten("Credential=", f"Credential=x{KEY_ID}"),
    ],
)  # fmt: skip
def test_what_is_not_signed_for(make: Callable[[], Client]) -> None:
    with pytest.raises(DeniedError) as refused:
        make().through()
    assert refused.value.denial.code == "signature"
    assert KEY not in refused.value.denial.reason


@pytest.mark.parametrize(
    "client",
    [
        Client(STS, "/", b"Action=AssumeRole&RoleArn=x", method="POST", headers=FORM),
        Client(STS, "/", IDENTITY + b"&Action=GetSessionToken", method="POST", headers=FORM),
        Client(STS, "/?Action=GetFederationToken", IDENTITY, method="POST", headers=FORM),
        Client(STS, "/?%41ction=GetSessionToken", presigned=86400),
        Client(STS, "/", b'{"Action": "GetCallerIdentity"}', method="POST"),
        Client(STS, "/", IDENTITY, method="POST", headers=FORM | {"X-Amz-Target": "x.AssumeRole"}),
        Client(STS, "/service/x/operation/AssumeRole", IDENTITY, method="POST", headers=FORM),
        # What the proxy does not read, STS may.
        Client(
            STS, f"/?{IDENTITY.decode()}", "Action=AssumeRole".encode("utf-16"), method="POST", headers=FORM
        ),
        Client(
            STS, "/", IDENTITY, method="POST", headers={"Content-Type": "multipart/form-data; boundary=x"}
        ),
        Client(
            STS,
            "/",
            IDENTITY,
            method="POST",
            headers={"Content-Type": f"{FORM['Content-Type']}; charset=utf-16"},
        ),
        Client(STS, "/", IDENTITY, method="POST", headers=FORM | {"Content-Encoding": "gzip"}),
    ],
)
def test_sts_gives_no_keys_to_the_sandbox(client: Client) -> None:
    with pytest.raises(DeniedError, match="STS would answer with keys"):
        client.through()


def test_not_for_tomorrow() -> None:
    """A signature that the sandbox dates ahead would be good after the run."""
    client = Client(S3, "/bucket/x")
    signed = client.through(now=time.time() - 3600)
    assert client.taken(signed) == "RequestTimeTooSkewed"
    url = Client(S3, "/bucket/x", presigned=60)
    signed = url.through(now=time.time() + 30)
    assert b"X-Amz-Expires=29" in signed.target or b"X-Amz-Expires=30" in signed.target
    with pytest.raises(DeniedError, match="has ended"):
        url.through(now=time.time() + 61)


def test_another_credential_beside_a_signature_is_searched_for() -> None:
    """An API gateway that wants both. What cannot be searched passes for a signature alone.

    Seen to fail with a signature being enough for an answer to pass.
    """

    def script(wire: Wire) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                wire.message()
                wire.send(reply(200, b"opaque", "Content-Encoding: br"))

    client = Client(S3, "/bucket/x")
    head = b"GET %b HTTP/1.1%b\r\n\r\n" % (client.target, join_fields(client.headers))
    both = (RULE, InjectionRule("demo", (S3,), "x-api-key", scheme="raw"))
    with tls_origin(script, S3) as origin:
        for rules, status in (((RULE,), 200), (both, 502)):
            with house(origins={(S3, 443): origin}, rules=rules) as made, made.tunnel(S3) as wire:
                made.credentials.secrets = {"aws": CREDENTIAL.secret.reveal(), "demo": SECRET}
                wire.send(head)
                assert wire.message().status == status


def unsigned_length(length: int) -> bytes:
    """The head of a request to AWS whose body has to be read."""
    client = Client(DYNAMO, "/", b"{}", method="POST")
    client.change("Content-Length", str(length))
    return b"POST / HTTP/1.1%b\r\n\r\n" % join_fields(client.headers)


def test_bodies_that_are_held_are_bounded_together() -> None:
    """Seen failing: 30 MB of memory for each of 512 connections that send all of such a body but its last byte."""

    def script(wire: Wire) -> None:
        wire.message()

    with (
        tls_origin(script, DYNAMO) as origin,
        house(origins={(DYNAMO, 443): origin}, rules=(RULE,), limits=Limits(held=1000)) as made,
    ):
        with made.tunnel(DYNAMO) as first:
            first.send(unsigned_length(601) + b"x" * 600)
            while made.proxy._setup.held.free > 400:
                time.sleep(0.01)
            with made.tunnel(DYNAMO) as second:
                second.send(unsigned_length(500) + b"x" * 500)
                refused = second.message()
            assert (refused.status, refused.get("x-moat-error")) == (503, "busy")
            assert b"MoatRefused" in refused.body
        while made.proxy._setup.held.free < 1000:
            time.sleep(0.01)
        with made.tunnel(DYNAMO) as third:
            third.send(unsigned_length(900) + b"x" * 900)
            assert third.message().get("x-moat-denied") == "signature", "there is room again"


def test_a_body_that_is_too_long_to_be_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equipment, "LONGEST_BODY", 1000)
    with house(rules=(RULE,)) as made, made.tunnel(DYNAMO) as wire:
        wire.send(unsigned_length(5000) + b"x" * 2000)
        assert wire.message().status == 413


def test_what_is_not_of_the_run_s_key_passes() -> None:
    client = Client(S3, "/bucket/x", keys=("AKIASOMEBODYELSE0000", "x"))
    assert SIGNER.read(client.method, client.target, client.headers) is None
    presigned = Client(S3, "/bucket/x", keys=("AKIASOMEBODYELSE0000", "x"), presigned=60)
    assert SIGNER.read(presigned.method, presigned.target, presigned.headers) is None
    assert SIGNER.read(b"GET", b"/", ((b"Host", S3.encode()),)) is None


def test_a_signature_is_bound_to_aws() -> None:
    table = InjectionTable([RULE])
    assert table.site(S3, 443, "https").signer is not None
    for host, port, scheme in (
        (S3, 80, "http"),
        (S3, 8443, "https"),
        ("amazonaws.com.evil.example", 443, "https"),
    ):
        site = table.site(host, port, scheme)
        assert site.signer is None
        assert site.leaks(b"/?X-Amz-Credential=" + KEY_ID.encode(), b"") is not None


def test_a_credential_that_is_none_is_refused() -> None:
    client = Client(S3, "/bucket/x")
    found = SIGNER.read(client.method, client.target, client.headers)
    assert found is not None
    broken = Credential(CREDENTIAL.info, Secret("no keys"))
    with pytest.raises(InjectionError, match="not the keys of an AWS role") as error:
        sign(SIGNER.check(found, b"", time.time()), b"", broken, time.time())
    assert "no keys" not in str(error.value)


@pytest.mark.parametrize(("host", "kind"), [(S3, b"text/xml"), (DYNAMO, b"application/json")])
def test_clients_can_show_a_refusal(host: str, kind: bytes) -> None:
    with pytest.raises(DeniedError) as refused:
        Client(host, "/", keys=(KEY_ID, "<&")).through()
    answer = shaped(denied(refused.value.denial), host)
    headers = dict(answer.headers)
    assert headers[b"Content-Type"] == kind
    assert headers[b"Content-Length"] == b"%d" % len(answer.body)
    assert b"moat refused this request" in answer.body
    assert b"MoatRefused" in answer.body


@pytest.mark.parametrize("batch", [False, True])
def test_what_an_mcp_server_of_aws_is_told_stays_as_its_clients_read_it(batch: bool) -> None:
    """Seen failing: the connection ended without an answer (KeyError)."""
    table = McpTable((endpoint(host=DYNAMO),), lambda _: None)
    refused = [call("write", n) for n in range(2)] if batch else call("write")
    with house(rules=(RULE,), mcp=table) as made, made.tunnel(DYNAMO) as wire:
        answer = post(wire, refused, host=DYNAMO)
        assert (answer.status, answer.get("content-type")) == (200, "application/json")
        assert b'"jsonrpc"' in answer.body
