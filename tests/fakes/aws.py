"""AWS on loopback: STS, S3 and DynamoDB as far as clients need them, with signatures checked by botocore.

Nothing here uses `moat.sigv4`. What is not signed with keys that are good at this moment is refused, as by AWS.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.vault.vendor import Answer, Asked

ROLE = "arn:aws:iam::123456789012:role/agents"
REGION = "eu-west-1"
STS = f"sts.{REGION}.amazonaws.com"
S3 = f"s3.{REGION}.amazonaws.com"
BUCKET = f"bucket.s3.{REGION}.amazonaws.com"
DYNAMO = f"dynamodb.{REGION}.amazonaws.com"
GLOBAL = "bucket.s3.amazonaws.com"  # in pre-signed URLs of boto3
HOSTS = (STS, S3, BUCKET, DYNAMO, GLOBAL)
OWN = Credentials("AKIAHOSTHOSTHOSTHOST", "host-secret-key-of-the-user-0123456789AB")
_IN_HEADER = re.compile(r"AWS4-HMAC-SHA256 Credential=(\S+), SignedHeaders=(\S+), Signature=(\w+)")


@dataclass
class FakeAws:
    external_id: str = ""
    life: float | None = None  # seconds of a session; None: as asked for
    refusal: str = ""  # code that STS answers with
    sessions: list[str] = field(default_factory=list)  # names
    issued: list[Credentials] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)  # why, for the test's message

    @property
    def secrets(self) -> list[str]:
        """All that must never be seen in a sandbox."""
        return [OWN.access_key, OWN.secret_key] + [
            text for keys in self.issued for text in (keys.access_key, keys.secret_key, keys.token)
        ]

    def __call__(self, asked: Asked) -> Answer:
        if "authorization" not in asked.headers and "X-Amz-Signature" not in asked.path:
            return 403, _error("MissingAuthenticationToken")
        found = self.signed_by(asked)
        if isinstance(found, str):
            self.refused.append(f"{asked.method} {asked.host}{asked.path}: {found}")
            return 403, _error(found)
        if asked.host == STS:
            return self._sts(asked, found)
        if found is OWN:
            return 403, _error("AccessDenied")  # the user may assume the role, and nothing else
        echo = {"x-echo": asked.headers.get("x-amz-security-token", ""), "x-key": found.access_key}
        if asked.host == DYNAMO:
            return 200, {"Item": {"echo": {"S": json.dumps(echo)}}, "Sent": json.loads(asked.body)}
        return self._s3(asked, echo)

    def signed_by(self, asked: Asked) -> Credentials | str:
        """Whose keys the request is signed with, or AWS's code for what is wrong."""
        url = urlsplit(asked.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if match := _IN_HEADER.fullmatch(asked.headers.get("authorization", "")):
            credential, signed, value = match.groups()
            time, token = asked.headers["x-amz-date"], asked.headers.get("x-amz-security-token")
        elif "X-Amz-Signature" in query:
            credential, signed, value = (
                query[f"X-Amz-{n}"] for n in ("Credential", "SignedHeaders", "Signature")
            )
            time, token = query["X-Amz-Date"], query.get("X-Amz-Security-Token")
        else:
            return "IncompleteSignature"
        key_id, date, region, service, _ = credential.split("/")
        keys = next((keys for keys in (OWN, *self.issued) if keys.access_key == key_id), None)
        if keys is None or keys.token != token:
            return "InvalidClientTokenId"
        made = dt.datetime.strptime(time, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        if abs(dt.datetime.now(dt.UTC) - made) > dt.timedelta(minutes=15) or not time.startswith(date):
            return "RequestTimeTooSkewed"
        if service != {STS: "sts", DYNAMO: "dynamodb"}.get(asked.host, "s3") or region != REGION:
            return "AuthorizationHeaderMalformed"
        sensitive = {name for name in asked.headers if name.startswith("x-amz-")} | {"host"}
        if not sensitive <= set(signed.split(";")):
            return "AccessDenied"  # a header that counts has to be signed
        kind = SigV4Auth if service != "s3" else S3SigV4Auth if match else S3SigV4QueryAuth
        rest = "&".join(part for part in url.query.split("&") if not part.startswith("X-Amz-Signature="))
        headers = {name: asked.headers[name] for name in signed.split(";")}
        request = AWSRequest(
            asked.method, f"https://{asked.host}{url.path}{'?' if rest else ''}{rest}", headers, asked.body
        )
        request.context["timestamp"] = time
        checker = kind(keys, service, region)
        text = checker.string_to_sign(request, checker.canonical_request(request))
        if checker.signature(text, request) != value:
            return "SignatureDoesNotMatch"
        told = asked.headers.get("x-amz-content-sha256", "")
        if (
            re.fullmatch("[0-9a-f]{64}", told)
            and told != __import__("hashlib").sha256(asked.body).hexdigest()
        ):
            return "XAmzContentSHA256Mismatch"
        return keys

    def _sts(self, asked: Asked, keys: Credentials) -> Answer:
        form = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
        if form["Action"] == "GetCallerIdentity":
            arn = f"<Arn>{ROLE.replace(':iam:', ':sts:')}/{self.sessions[-1]}</Arn>"
            return 200, _xml(
                "GetCallerIdentity", f"{arn}<UserId>{keys.token}</UserId><Account>123456789012</Account>"
            )
        if self.refusal:
            return 403, _error(self.refusal)
        if keys is not OWN or form["RoleArn"] != ROLE or form.get("ExternalId", "") != self.external_id:
            return 403, _error("AccessDenied")
        life = float(form["DurationSeconds"]) if self.life is None else self.life
        made = Credentials(
            "ASIA" + secrets.token_hex(8).upper(),
            secrets.token_urlsafe(30),
            "real-token+/" + secrets.token_hex(200),
        )
        self.issued.append(made)
        self.sessions.append(form["RoleSessionName"])
        ends = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=life)).strftime("%Y-%m-%dT%H:%M:%SZ")
        arn = f"{ROLE.replace(':iam:', ':sts:').replace(':role/', ':assumed-role/')}/{self.sessions[-1]}"
        return 200, _xml(
            "AssumeRole",
            f"<AssumedRoleUser><AssumedRoleId>AROAX:x</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser>"
            f"<Credentials><AccessKeyId>{made.access_key}</AccessKeyId>"
            f"<SecretAccessKey>{made.secret_key}</SecretAccessKey><SessionToken>{made.token}</SessionToken>"
            f"<Expiration>{ends}</Expiration></Credentials>",
        )

    def _s3(self, asked: Asked, echo: dict[str, str]) -> Answer:
        key = unquote(urlsplit(asked.path).path)
        if asked.method == "PUT":
            body = asked.body
            if asked.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
                body = _unchunked(body)
            self.objects[key] = body
            return 200, b"", {"ETag": '"e"', **echo}
        if key == "/":
            keys = "".join(
                f"<Contents><Key>{quote(name[1:])}</Key></Contents>" for name in sorted(self.objects)
            )
            keys += "<EncodingType>url</EncodingType>"
            return 200, f"<ListBucketResult>{keys}</ListBucketResult>".encode(), echo
        if key not in self.objects:
            return 404, _error("NoSuchKey")
        data = self.objects[key]
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", "")):
            first, last = int(match[1]), int(match[2] or len(data) - 1)
            length = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            return 206, data[first : last + 1], {"ETag": '"e"', **length, **echo}
        return 200, data, {"ETag": '"e"', **echo}


def _unchunked(body: bytes) -> bytes:
    """What is inside of `aws-chunked`."""
    found = b""
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            return found
        found, body = found + body[:size], body[size + 2 :]


def _error(code: str) -> bytes:
    return f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>".encode()


def _xml(action: str, inner: str) -> bytes:
    return f"<{action}Response><{action}Result>{inner}</{action}Result></{action}Response>".encode()
