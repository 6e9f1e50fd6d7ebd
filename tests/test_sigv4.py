"""Signatures of AWS: the published examples, and botocore's own for anything else."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings, strategies as st

from moat.sigv4 import UNSIGNED, Keys, Request, Scope, authorization, escaped_path, payload_hash, wire_path

SUITE = Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_SCOPE = Scope(b"20150830", b"us-east-1", b"service")
S3 = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
S3_SCOPE = Scope(b"20130524", b"us-east-1", b"s3")
S3_HOST = (b"Host", b"examplebucket.s3.amazonaws.com")
S3_TIME = b"20130524T000000Z"
NOTHING = payload_hash(b"")
PUT = b"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"
QUERY = (
    b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F"
    b"aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
)


def s3(payload: bytes = NOTHING, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [S3_HOST, (b"x-amz-content-sha256", payload), (b"x-amz-date", S3_TIME), *more]


@pytest.mark.parametrize(
    ("request_", "signature"),
    [
        (
            Request(b"GET", b"/test.txt", b"", s3(NOTHING, (b"Range", b"bytes=0-9")), NOTHING),
            b"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            Request(
                b"PUT",
                wire_path(b"/test%24file.text"),
                b"",
                s3(
                    PUT,
                    (b"Date", b"Fri, 24 May 2013 00:00:00 GMT"),
                    (b"x-amz-storage-class", b"REDUCED_REDUNDANCY"),
                ),
                PUT,
            ),
            b"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            Request(b"GET", wire_path(b""), b"lifecycle", s3(), NOTHING),
            b"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            Request(b"GET", b"/", b"prefix=J&max-keys=2", s3(), NOTHING),
            b"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
        (
            Request(b"GET", b"/test.txt", QUERY, [S3_HOST], UNSIGNED),
            b"aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
        ),
    ],
    ids=["range", "put", "parameter", "parameters", "pre-signed"],
)
def test_the_examples_of_the_s3_reference(request_: Request, signature: bytes) -> None:
    assert request_.signature(S3, S3_SCOPE, S3_TIME) == signature


def test_the_first_case_of_the_published_suite() -> None:
    headers = [(b"Host", b"example.amazonaws.com"), (b"X-Amz-Date", b"20150830T123600Z")]
    value = Request(b"GET", b"/", b"", headers, NOTHING).signature(SUITE, SUITE_SCOPE, b"20150830T123600Z")
    assert authorization("AKIDEXAMPLE", SUITE_SCOPE, [b"x-amz-date", b"host"], value) == (
        b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        b"SignedHeaders=host;x-amz-date, "
        b"Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    )


@pytest.mark.parametrize(
    ("path", "signed"),
    [
        (b"", b"/"),
        (b"/a/./b/../c//d/", b"/a/c/d/"),
        (b"/../..", b"/"),
        (b"/a%20b", b"/a%2520b"),
        (b"/arn:aws:x", b"/arn%3Aaws%3Ax"),
    ],
)
def test_paths_of_other_services(path: bytes, signed: bytes) -> None:
    assert escaped_path(path) == signed


@settings(max_examples=60)
@given(
    path=st.lists(st.text("ab %+&=ü/.:~*'", max_size=6), max_size=4),
    query=st.dictionaries(
        st.text("ab ü/", min_size=1, max_size=4), st.text("ab ü+&=/", max_size=4), max_size=4
    ),
    value=st.text("ab ", min_size=1, max_size=8).map(str.strip).filter(bool),
    body=st.binary(max_size=20),
    kind=st.sampled_from([SigV4Auth, S3SigV4Auth]),
)
def test_botocore_signs_the_same(
    path: list[str], query: dict[str, str], value: str, body: bytes, kind: type[SigV4Auth]
) -> None:
    wire = "/" + quote("/".join(path), safe="/~")
    parameters = "&".join(f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in query.items())
    headers = {"Host": "x.amazonaws.com", "X-Amz-Date": "20150830T123600Z", "My-Header": f"  {value} "}
    theirs = AWSRequest("PUT", f"https://x.amazonaws.com{wire}?{parameters}", headers, body)
    theirs.context["timestamp"] = "20150830T123600Z"
    auth = kind(Credentials(SUITE.key_id, SUITE.secret), "service", "us-east-1")
    expected = auth.signature(auth.string_to_sign(theirs, auth.canonical_request(theirs)), theirs)
    ours = Request(
        b"PUT",
        (wire_path if kind is S3SigV4Auth else escaped_path)(wire.encode()),
        parameters.encode(),
        [(name.encode(), text.encode()) for name, text in headers.items()],
        payload_hash(body),
    )
    assert ours.signature(SUITE, SUITE_SCOPE, b"20150830T123600Z").decode() == expected


def test_keys_are_not_shown() -> None:
    assert "wJalr" not in repr(S3) + str(S3)
    assert Keys.load(S3.dump()) == S3
    for text in ("", "[1]", "{", '"ab"'):
        with pytest.raises(ValueError, match="keys of an AWS role"):
            Keys.load(text)
