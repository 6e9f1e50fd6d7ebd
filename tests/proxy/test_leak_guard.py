"""Placeholders on their way to hosts that their grants are not for: refused, however they are spelled.

Seen to fail: with `SiteRules.guard` None; with `guarded` true everywhere (the prompt that quotes is refused);
with `Strangers` looking for the placeholders as they are (spellings); with `Strangers.begun` giving 0 (pieces);
with `guard` always giving a `BodyGuard` (compressed), without the `raise` for what the decoder says (cut,
broken, codings), without the look at `most` (bomb).
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from urllib.parse import quote

import pytest

from moat.grants import InjectionRule
from moat.proxy import Limits
from moat.proxy.events import DeniedError
from moat.proxy.inject import CompiledRule
from moat.proxy.leak_guard import Strangers, guard
from moat.proxy.site_rules import InjectionTable
from tests.proxy.conftest import HouseMaker, house, tls_origin
from tests.proxy.h2peers import Client
from tests.proxy.peers import Origin, Wire
from tests.proxy.test_exchange import OTHER, PLAIN
from tests.proxy.test_substitute import API, PATH, PH, ask, recording, request, wait_for

LIMITS = Limits()
ELSE = InjectionRule("else", ("else.test",), "authorization", placeholder="ghp_moat0aB1cD2eF3gH4iJ5kL6mN7")
SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "percent": lambda text: "".join(f"%{byte:02x}" for byte in text).encode(),
    "percent, in part": lambda text: text.replace(b"A", b"%41"),
    "json": lambda text: "".join(f"\\u{byte:04x}" for byte in text).encode(),
    "hex": lambda text: text.hex().encode(),
    **{
        f"base64 at {shift}{' url' if encode is base64.urlsafe_b64encode else ''}": (
            lambda text, shift=shift, encode=encode: encode(b"user:"[:shift] + text + b"!!"[: shift % 3])
        )
        for shift in range(4)
        for encode in (base64.b64encode, base64.urlsafe_b64encode)
    },
    "base64 in lines": lambda text: base64.encodebytes(b"x" * 30 + text),
}  # fmt: skip
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": lambda text: gzip.compress(text[:9]) + gzip.compress(text[9:]),
    "deflate": zlib.compress,
    "Deflate": lambda text: zlib.compress(text, wbits=-15),
}


def strangers(*rules: InjectionRule) -> Strangers:
    return Strangers([CompiledRule.of(rule) for rule in rules], "https://other.test:443")


def coded(coding: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"Content-Encoding", coding.encode()),) if coding else ()


# --- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_every_spelling_is_found_wherever_it_is_cut(spelling: str) -> None:
    """In heads, and in bodies cut in two at every place; the grant that is named is the right one."""
    for rule in (PATH, ELSE):
        text = b'{"a": "' + SPELLINGS[spelling](rule.placeholder.encode()) + b'"}'
        denial = strangers(PATH, ELSE).denial(text)
        assert denial is not None
        assert denial.code == "credential-host"
        assert f"grant {rule.credential}," in denial.reason
        assert rule.placeholder not in str(denial)
        for cut in range(len(text) + 1):
            looking = guard((), strangers(PATH, ELSE), LIMITS)
            with pytest.raises(DeniedError):
                looking.feed(text[:cut]) + looking.feed(text[cut:]) + looking.finish()
        site = InjectionTable([PATH, ELSE]).site("other.test", 443, "https")
        line = text.replace(b"\n", b"")
        assert (spelling == "base64 in lines") or site.leaks(b"/", b"\r\nX-A: " + line) is not None
        assert (spelling == "base64 in lines") or site.leaks(b"/?a=" + quote(line).encode(), b"") is not None


@pytest.mark.parametrize("coding", list(PACKINGS))
def test_compressed_bodies_are_looked_into_and_leave_as_they_came(coding: str) -> None:
    """In pieces of any size; found in what any piece brings, also across pieces and in disguise."""
    dice = random.Random(7)
    pack, limits = PACKINGS[coding], replace(LIMITS, decoded_step=50)
    clean = json.dumps({"noise": dice.randbytes(3000).hex()}).encode()
    for size in (1, 7, 100, 5000):
        for text in (clean + PH.encode() + clean, clean + base64.b64encode(b"u:" + PH.encode())):
            looking, body = guard(coded(coding), strangers(PATH), limits), pack(text)
            with pytest.raises(DeniedError, match="placeholder of grant bot in its body"):
                _through(looking, body, size)
        looking, body = guard(coded(coding), strangers(PATH), limits), pack(clean + PH[:-1].encode())
        assert _through(looking, body, size) == body


def _through(looking: object, body: bytes, size: int) -> bytes:
    passed = [looking.feed(body[at : at + size]) for at in range(0, len(body), size)]
    return b"".join(passed) + looking.finish()


def archive(kind: str) -> bytes:
    """A file with a placeholder, in an archive."""
    made, text = io.BytesIO(), b"TOKEN=" + PH.encode() + b"\n" * 200
    if kind.startswith("tar"):
        with tarfile.open(fileobj=made, mode="w:" if kind == "tar" else "w:gz") as tar:
            entry = tarfile.TarInfo("env")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
    else:
        method = zipfile.ZIP_STORED if kind == "zip, stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(made, "w", method) as packed:
            packed.writestr("env", text)
    return made.getvalue()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (archive("tar"), True), (archive("zip, stored"), True), (archive("zip"), False), (archive("tar.gz"), False),
        (gzip.compress(PH.encode()), False), (lzma.compress(PH.encode() * 9), False),
        (base64.b64encode(gzip.compress(PH.encode())), False), (PH[::-1].encode(), False),
    ],
    ids=["tar", "zip, stored", "zip", "tar.gz", "gzip", "xz", "gzip in base64", "reversed"],
)  # fmt: skip
def test_what_is_not_found(body: bytes, found: bool) -> None:
    """docs/limits.md says so: what nobody announces is not opened."""
    looking = guard((), strangers(PATH, ELSE), LIMITS)
    with pytest.raises(DeniedError) if found else nullcontext():
        assert looking.feed(body) + looking.finish() == body


@pytest.mark.parametrize(
    ("body", "coding", "why"),
    [
        (gzip.compress(b"x" * 1000)[:-9], "gzip", "ended early"),
        (zlib.compress(b"x" * 1000) + b"more", "deflate", "goes on after its end"),
        (b"no gzip", "gzip", "is broken"),
        (gzip.compress(bytes(20_000_000)), "gzip", "more than 100 times"),
        (b"x", "br", "encoded as br"),
        (b"x", "zstd", "encoded as zstd"),
        (gzip.compress(gzip.compress(b"x")), "gzip, gzip", "encoded as gzip, gzip"),
        (b"x", "gzip, aws-chunked", "encoded as gzip, aws-chunked"),
    ],
)
def test_what_cannot_be_looked_into_is_refused(body: bytes, coding: str, why: str) -> None:
    """Before anything is opened. A bomb costs no more than `inflation` says."""
    with recording() as (origin, got), house(origins={OTHER: origin}, rules=[PATH]) as made:
        answer = ask(made, request("/", body, f"Content-Encoding: {coding}", host="other.test"), "other.test")
        assert (answer.status, answer.get("x-moat-denied")) == (403, "body-coding")
        assert why in answer.json()["error"]
        assert "body_leaks: pass" in answer.json()["hint"]
        assert made.event().denial.code == "body-coding"
        assert origin.accepted == 0
    with (
        recording() as (origin, got),
        house(origins={OTHER: origin}, rules=[PATH], body_leaks="pass") as made,
    ):
        sent = request("/", body, f"Content-Encoding: {coding}", host="other.test")
        assert ask(made, sent, "other.test").status == 200
        assert got[0].body == body


# --- over the wire -------------------------------------------------------------------------------


def test_disguises_are_refused_over_the_wire_and_honest_bodies_pass() -> None:
    """Before anything is opened, and recorded, as the plain one is; then an honest one of each kind."""
    basic = base64.b64encode(f"me:{PH}".encode()).decode()
    packed = [(coding, pack(f"a {PH} b".encode())) for coding, pack in PACKINGS.items()]
    with (
        recording() as (origin, got),
        house(origins={OTHER: origin, API: origin}, rules=[PATH, ELSE]) as made,
    ):
        refused = [
            request("/", b"", f"Authorization: Basic {basic}", host="other.test"),
            request("/", b"", f"X-Blob: {base64.b64encode(b'12' + PH.encode()).decode()}", host="other.test"),
            request(f"/{PH.encode().hex()}", host="other.test"),
            request("/", f"blob={basic}".encode(), host="other.test"),
            *(request("/", body, f"Content-Encoding: {name}", host="other.test") for name, body in packed),
        ]
        for data in refused:
            answer = ask(made, data, "other.test")
            assert (answer.status, answer.get("x-moat-denied")) == (403, "credential-host")
            assert made.event().denial.code == "credential-host"
        assert origin.accepted == 0
        for coding, pack in PACKINGS.items():
            body = pack(b"honest " * 1000)
            sent = request("/", body, f"Content-Encoding: {coding}", host="other.test")
            assert ask(made, sent, "other.test").status == 200
            assert (got[-1].body, got[-1].get("content-encoding")) == (body, coding)
        sent = request("/", b"a" * 1000, "Content-Encoding: aws-chunked", host="other.test")
        assert ask(made, sent, "other.test").status == 200


def test_a_short_message_is_not_held_back_for_what_may_follow() -> None:
    """What ends with the first letters of a placeholder leaves: its reader may have to answer first."""
    looking = guard((), strangers(PATH, ELSE), LIMITS)
    for end in (PH[:2].encode(), b"gh", base64.b64encode(PH.encode())[:2]):
        assert looking.feed(b"message " + end) == b"message " + end
    with pytest.raises(DeniedError):
        looking.feed(b" " + PH[:2].encode()) + looking.feed(PH[2:].encode())


def test_a_placeholder_in_a_body_to_a_stranger(make: HouseMaker) -> None:
    """Refused before anything is opened when it is there with the head, and cut off before it when it comes later."""
    arrived = bytearray()

    def script(wire: Wire) -> None:
        with suppress(OSError):
            while data := wire.receive():
                arrived.extend(data)

    with tls_origin(script, "other.test") as origin, make(origins={OTHER: origin}, rules=[PATH]) as made:
        for data in (
            request("/", f"token={PH}".encode(), host="other.test"),
            request(
                "/",
                f"t={quote(PH)}".encode(),
                "Content-Type: application/x-www-form-urlencoded",
                host="other.test",
            ),
        ):
            answer = ask(made, data, "other.test")
            assert (answer.status, answer.get("x-moat-denied")) == (403, "credential-host")
            assert PH not in answer.body.decode()
            assert made.event().denial.code == "credential-host"
        assert origin.accepted == 0
        with made.tunnel("other.test") as wire:
            wire.send(request("/", b"", "Transfer-Encoding: chunked", host="other.test"))
            for piece in (b"x" * 1000, PH[:20].encode(), PH[20:].encode()):
                wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                wait_for(b"x" * 1000, arrived)
            answer = wire.message()
        assert (answer.status, answer.get("x-moat-denied")) == (403, "credential-host")
        assert "1000 bytes of the body had been sent" in answer.json()["error"]
    assert b"x" * 1000 in arrived
    assert PH[:5].encode() not in arrived
    assert not arrived.endswith(b"0\r\n\r\n")


def test_the_guard_over_plain_http_and_over_http2() -> None:
    """Over http no grant is for any host; over HTTP/2 the rest of a stream does not go up."""
    seen = bytearray()

    def script(wire: Wire) -> None:
        with suppress(OSError):
            while data := wire.receive():
                seen.extend(data)

    with Origin(script) as origin, house(origins={PLAIN: origin}, rules=[PATH]) as made:
        with made.connect() as wire:
            wire.send(request("http://api.test/", f"a={PH}".encode()))
            assert wire.message().get("x-moat-denied") == "credential-host"
        assert origin.accepted == 0
    with tls_origin(script, "other.test") as origin, house(origins={OTHER: origin}, rules=[PATH]) as made:
        with Client.through(made, "other.test") as client:
            stream = client.ask(
                method="POST", authority="other.test", body=b"y" * 2000 + PH[:9].encode(), end=False
            )
            wait_for(b"y" * 2000, seen)
            client.send(stream, PH[9:].encode() + b"z" * 2000, end=True)
            answer = client.until(stream)
        assert (answer.status, answer.headers["x-moat-denied"]) == (403, "credential-host")
    assert b"y" * 2000 in seen
    assert PH[:5].encode() not in seen
    assert b"zz" not in seen


def test_a_body_that_quotes_a_placeholder_to_a_host_of_a_grant_passes() -> None:
    """An agent shows its environment to its model. Neither its own nor another grant's placeholder is touched."""
    model = InjectionRule("model", ("api.test",), "x-api-key", "raw", placeholder="sk-moat-model-1234")
    text = json.dumps({"prompt": f"TOKEN={PH} KEY=sk-moat-model-1234"}).encode()
    with recording() as (origin, got):
        with house(origins={API: origin}, rules=[model, replace(PATH, hosts=("else.test",))]) as made:
            made.credentials.secrets = {"model": "real-model-key"}
            answer = ask(made, request("/v1", text, "Content-Type: application/json"))
        assert answer.status == 200
        assert got[0].body == text


def test_a_placeholder_in_a_body_passes_where_the_user_says_so() -> None:
    """For an agent whose model is at a host that no grant is for. Heads are looked at all the same."""
    with (
        recording() as (origin, got),
        house(origins={OTHER: origin}, rules=[PATH], body_leaks="pass") as made,
    ):
        assert ask(made, request("/", PH.encode(), host="other.test"), "other.test").status == 200
        assert got[0].body == PH.encode()
        assert ask(made, request(f"/{PH}", host="other.test"), "other.test").status == 403


def test_bodies_without_placeholders_pass_the_guard_whole() -> None:
    data = random.Random(3).randbytes(1_000_000) + PH[:-1].encode()
    with recording() as (origin, got), house(origins={OTHER: origin}, rules=[PATH]) as made:
        assert ask(made, request("/", data, host="other.test"), "other.test").status == 200
        assert got[0].body == data
        assert got[0].get("content-length") == str(len(data))
        assert ask(made, request("/", PH[:-1].encode(), host="other.test"), "other.test").status == 200
        assert got[1].body == PH[:-1].encode()
