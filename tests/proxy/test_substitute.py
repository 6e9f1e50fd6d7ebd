"""Placeholders in path, query and body: replaced where a grant asks for it, refused elsewhere, guarded abroad.

Seen to fail: with `Finder.held` giving 0 (a placeholder in two pieces goes out as it is, and passes the guard);
with `_use` not counting; with `Substitution.target` returning its argument; with `_WRITERS` writing everything
as it is; with `Substituted.feed` reading again what it has put in (`at` left out); with `leaks` without its loop over `_at_home`;
with `_watch_for` left out (the echo brings the secret); with `resized_fields` left out.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import pytest

from moat.grants import InjectionRule
from moat.proxy import Denial, Limits
from moat.proxy.events import DeniedError
from moat.proxy.inject import CompiledRule
from moat.proxy.placeholders import Finder
from moat.proxy.site_rules import InjectionTable
from moat.proxy.substitute import Spelling, Substitution, bindings_of, spelling_of
from tests.proxy.conftest import House, HouseMaker, house, tls_origin
from tests.proxy.h2peers import Client
from tests.proxy.peers import Message, Origin, Wire, reply
from tests.proxy.test_exchange import API, OTHER, resident
from tests.proxy.test_h2_upstream import h2_origin

PH = "110200543:AAmoatX0y1Z2aaaabbbbccccdddd"
SECRET = 'real:0123/45+6"7 8&9=\\%41é'
PATH = InjectionRule("bot", ("api.test",), placeholder=PH, surfaces=("path",))
QUERY = replace(PATH, surfaces=("query",))
BODY = replace(PATH, surfaces=("body",), occurrences=2)
ALL = replace(PATH, surfaces=("path", "query", "body"), occurrences=3)
OTHERS = InjectionRule("other", ("else.test",), "authorization", placeholder="ghp_moatOTHEROTHER")


# --- text ----------------------------------------------------------------------------------------


def substitution(rule: InjectionRule, used: list[str] | None = None) -> Substitution:
    bindings = bindings_of([CompiledRule.of(rule)])
    return Substitution(bindings, {"bot": SECRET.encode()}, "here", (used if used is not None else []).append)


def test_a_target_is_percent_encoded_and_read_so() -> None:
    used: list[str] = []
    put = substitution(ALL, used)
    spelled = "".join(f"%{ord(char):02x}" for char in PH)
    target = put.target(f"/bot{PH}/m?token={quote(PH)}&x=%25&y={spelled}".encode()).decode()
    path, query = target.split("?")
    assert unquote(path) == f"/bot{SECRET}/m"
    assert path.count("/") == 2  # a secret stays one segment
    assert parse_qs(query) == {"token": [SECRET], "x": ["%"], "y": [SECRET]}
    assert used == ["bot"] * 3
    with pytest.raises(DeniedError) as refused:
        put.target(f"/{PH}".encode())
    assert refused.value.denial.code == "credential-count"
    assert PH not in str(refused.value.denial)


@pytest.mark.parametrize(
    ("media", "spelling"),
    [
        ("application/json; charset=utf-8", Spelling.JSON),
        ("Application/vnd.api+JSON", Spelling.JSON),
        ("application/x-www-form-urlencoded", Spelling.FORM),
        ("text/plain", Spelling.PLAIN),
        ("multipart/form-data; boundary=x", Spelling.PLAIN),
        ("", Spelling.PLAIN),
        ("application/grpc+proto", None),
    ],
)
def test_the_kind_of_a_body(media: str, spelling: Spelling | None) -> None:
    assert spelling_of(media.encode()) is spelling


BODIES = {
    Spelling.PLAIN: (f"a {PH} b {PH}".encode(), lambda text: text.decode() == f"a {SECRET} b {SECRET}"),
    Spelling.JSON: (
        json.dumps({"a": [PH, 1], "b": f"x{PH}"}).encode(),
        lambda text: json.loads(text) == {"a": [SECRET, 1], "b": f"x{SECRET}"},
    ),
    Spelling.FORM: (
        f"a={quote(PH)}&b=1+{PH}&c=%2541".encode(),
        lambda text: parse_qs(text.decode()) == {"a": [SECRET], "b": [f"1 {SECRET}"], "c": ["%41"]},
    ),
}


@pytest.mark.parametrize("spelling", list(BODIES))
def test_bodies_at_every_split(spelling: Spelling) -> None:
    body, right = BODIES[spelling]
    for cut in range(len(body) + 1):
        text = substitution(BODY).body(spelling)
        assert text is not None
        assert right(text.feed(body[:cut]) + text.feed(body[cut:]) + text.finish()), cut
    text = substitution(BODY).body(spelling)
    assert text is not None
    assert right(b"".join(text.feed(body[at : at + 1]) for at in range(len(body))) + text.finish())


def test_what_was_put_in_is_not_read_again() -> None:
    """A secret that ends like a placeholder begins would otherwise tell so by being counted twice."""
    used: list[str] = []
    secret = {"bot": b"s-" + PH[:5].encode()}
    put = Substitution(bindings_of([CompiledRule.of(BODY)]), secret, "here", used.append)
    text = put.body(Spelling.PLAIN)
    assert text is not None
    out = text.feed(PH.encode()) + text.feed(PH[5:].encode()) + text.finish()
    assert (out.decode(), used) == (f"s-{PH[:5]}{PH[5:]}", ["bot"])


@pytest.mark.parametrize("percent", [False, True])
def test_a_finder_finds_in_pieces_what_it_finds_in_the_whole(percent: bool) -> None:
    """Random text of the needles' own letters in random pieces; the whole is read by `re`."""
    dice = random.Random(5)
    needles = (b"abab:c", b"abac")
    plain = re.compile(b"(abab:c)|(abac)")
    for _ in range(400):
        text = bytes(dice.choice(b"ab:c%") for _ in range(60)).replace(b"%", b"%61" if percent else b"a")
        whole = list(Finder(needles, percent=percent).spans(text))
        found = [(match.lastindex - 1, *match.span()) for match in plain.finditer(text) if match.lastindex]
        assert whole == found if not percent else len(whole) >= len(found)
        finder, held, got, at = Finder(needles, percent=percent), b"", [], 0
        while at < len(text) or held:
            size = dice.randrange(1, 9)
            piece, last = held + text[at : at + size], at + size >= len(text)
            start = at - len(held)
            end = 0
            for index, first, end in finder.spans(piece):
                got.append((index, start + first, start + end))
            keep = 0 if last else finder.held(piece[end:])
            held = piece[len(piece) - keep :]
            at += size
        assert got == whole, text


# --- leaks in heads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "target", "field", "code"),
    [
        (PATH, f"/bot{PH}/x", "", ""),
        (PATH, f"/x?t={PH}", "", "credential-surface"),
        (PATH, f"/x?t={quote(PH)}", "", "credential-surface"),
        (PATH, "/", f"\r\nX-Token: {PH}", "credential-surface"),
        (PATH, "/", f"\r\nX-Token: {quote(PH)}", "credential-surface"),
        (QUERY, f"/x?t={PH}", "", ""),
        (QUERY, f"/{PH}?t=1", "", "credential-surface"),
        (replace(QUERY, header="x-key", surfaces=("header", "query")), f"/?a={PH}", f"\r\nX: {PH}", ""),
        (OTHERS, "/", "\r\nX: ghp_moatOTHEROTHER", "credential-host"),
        (OTHERS, "/ghp_moat%4fTHEROTHER", "", "credential-host"),
    ],
)
def test_a_placeholder_in_a_head(rule: InjectionRule, target: str, field: str, code: str) -> None:
    found = InjectionTable([rule]).site("api.test", 443, "https").leaks(target.encode(), field.encode())
    assert (found.code if found else "") == code
    assert found is None or rule.placeholder not in str(found)


# --- over the wire -------------------------------------------------------------------------------


@contextmanager
def recording(*names: str) -> Iterator[tuple[Origin, list[Message]]]:
    """An origin that keeps what it got and answers it all back, as text."""
    got: list[Message] = []

    def script(wire: Wire) -> None:
        while True:
            request = wire.message()
            got.append(request)
            echoed = "\n".join([request.start, str(request.headers), request.body.decode("latin-1")])
            wire.send(reply(200, echoed.encode("latin-1"), f"X-Echo: {request.target}"))

    def until_the_end(wire: Wire) -> None:
        with suppress(ConnectionError):
            script(wire)

    with tls_origin(until_the_end, *(names or ("api.test", "other.test"))) as origin:
        yield origin, got


def request(
    path: str = "/", body: bytes = b"", *headers: str, host: str = "api.test", method: str = "POST"
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(made: House, data: bytes, host: str = "api.test") -> Message:
    with made.tunnel(host) as wire:
        wire.send(data)
        return wire.message()


def wait_for(text: bytes, arrived: bytearray) -> None:
    deadline = time.monotonic() + 10
    while text not in arrived:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_house(rule: InjectionRule, origin: Origin, **more: Any) -> Any:
    return house(origins={API: origin, OTHER: origin}, rules=[rule, OTHERS], **more)


def test_a_token_in_the_path(make: HouseMaker) -> None:
    """It arrives; neither the answer, nor what is recorded, nor a second one brings or gives more of it."""
    secret = "123456:real-secret_AAbbCC"
    with (
        recording() as (origin, got),
        make(origins={API: origin}, rules=[PATH]) as made,
        made.tunnel() as wire,
    ):
        made.credentials.secrets = {"bot": secret}
        for path in (f"/bot{PH}/getMe?a=1", f"/bot{quote(PH, safe='')}/getMe?a=1"):
            wire.send(request(path, method="GET"))
            answer = wire.message()
            assert answer.status == 200
            assert got[-1].target == f"/bot{secret}/getMe?a=1"
            assert got[-1].get("accept-encoding") == "identity"
            assert secret.encode() not in answer.body
            assert answer.get("x-echo") == f"/bot{'*' * len(secret)}/getMe?a=1"
            event = made.event()
            assert (event.grants, event.url) == (("bot",), f"https://api.test{path}")
            assert secret not in repr(event)
        wire.send(request("/no/token", method="GET"))
        assert wire.message().status == 200
        event = made.event()
        assert event.grants == ()
        assert made.credentials.asked == ["bot"] * 2  # not fetched when it is not needed
        wire.send(request(f"/bot{PH}/{PH}", method="GET"))
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-denied")) == (403, "credential-count")
        denial = made.event().denial
        assert isinstance(denial, Denial)
        assert len(got) == 3


def test_a_query_next_to_a_header() -> None:
    rule = replace(QUERY, header="x-key", scheme="raw", surfaces=("header", "query"))
    with recording() as (origin, got), open_house(rule, origin) as made:
        made.credentials.secrets = {"bot": "abc+d/e"}
        assert ask(made, request(f"/x?key={PH}&b=2", method="GET")).status == 200
        assert got[0].target == "/x?key=abc%2Bd%2Fe&b=2"
        assert got[0].get("x-key") == "abc+d/e"
        answer = ask(made, request(f"/{PH}?b=2", method="GET"))
        assert (answer.status, answer.get("x-moat-denied")) == (403, "credential-surface")


def compressed(data: bytes, coding: str) -> bytes:
    return gzip.compress(data) if coding == "gzip" else zlib.compress(data)


@pytest.mark.parametrize("size", [0, 600_000])
@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_get_their_new_length(size: int, coding: str, chunked: bool) -> None:
    """A short one of known length keeps a length, any other leaves in chunks; a coding is taken off.

    Compressed by us, the credential would come back from a server that answers with what it got.
    """
    noise = random.Random(1).randbytes(size // 2).hex()
    data = json.dumps({"token": PH, "noise": noise, "last": PH}).encode()
    sent = compressed(data, coding) if coding else data
    headers = [
        "Content-Type: application/json",
        "Digest: x",
        *([f"Content-Encoding: {coding}"] if coding else []),
    ]
    with recording() as (origin, got), open_house(BODY, origin) as made:
        made.credentials.secrets = {"bot": SECRET}
        with made.tunnel() as wire:
            if chunked:
                wire.send(request("/", b"", *headers, "Transfer-Encoding: chunked"))
                for at in range(0, len(sent), 9973):
                    piece = sent[at : at + 9973]
                    wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                wire.send(b"0\r\n\r\n")
            else:
                wire.send(request("/", sent, *headers))
            answer = wire.message()
        assert answer.status == 200
        assert SECRET.encode() not in answer.body
        (arrived,) = got
        assert json.loads(arrived.body) == {"token": SECRET, "noise": noise, "last": SECRET}
        assert (arrived.get("digest"), arrived.get("content-encoding")) == (None, None)
        assert (arrived.get("content-length") is None) is (chunked or size > 256 * 1024)
        event = made.event()
        assert (event.grants, event.request_bytes) == (("bot",), len(sent))


def test_a_body_without_a_placeholder_uses_nothing() -> None:
    with recording() as (origin, got), open_house(BODY, origin) as made:
        made.credentials.secrets = {"bot": SECRET}
        assert ask(made, request("/", b'{"a": 1}', "Content-Type: application/json")).status == 200
        assert (got[0].body, made.event().grants) == (b'{"a": 1}', ())


def test_a_client_that_waits_is_told_to_go_on() -> None:
    with recording() as (origin, got), open_house(BODY, origin) as made, made.tunnel() as wire:
        made.credentials.secrets = {"bot": "short"}
        head, body = request("/", PH.encode(), "Expect: 100-continue").split(b"\r\n\r\n")
        wire.send(head + b"\r\n\r\n")
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        wire.send(body)
        assert wire.message().status == 200
        assert (got[0].body, got[0].get("expect"), got[0].get("content-length")) == (b"short", None, "5")


def test_too_many_in_a_body_cut_it_off() -> None:
    """In chunks, the first two had left: the server has them and not the end."""
    arrived = bytearray()

    def script(wire: Wire) -> None:
        with suppress(OSError):
            while data := wire.receive():
                arrived.extend(data)

    with tls_origin(script) as origin, open_house(BODY, origin) as made:
        made.credentials.secrets = {"bot": "short"}
        answer = ask(made, request("/", f"{PH} {PH} {PH}".encode()))
        assert (answer.status, answer.get("x-moat-denied")) == (403, "credential-count")
        assert origin.accepted == 0
        with made.tunnel() as wire:
            wire.send(request("/", b"", "Transfer-Encoding: chunked"))
            for _ in range(3):
                wire.send(b"%x\r\n%b \r\n" % (len(PH) + 1, PH.encode()))
                wait_for(b"short", arrived)
            answer = wire.message()
        assert (answer.status, answer.get("x-moat-denied")) == (403, "credential-count")
        assert made.event().grants == ()
        assert made.event().grants == ("bot",)
    assert b"short" in arrived
    assert PH.encode() not in arrived
    assert not arrived.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("body", "coding", "status", "code"),
    [
        (gzip.compress(b"x" * 1000)[:-9], "gzip", 400, "malformed"),
        (b"no gzip", "gzip", 400, "malformed"),
        (gzip.compress(bytes(300_000)), "gzip", 413, "malformed"),
    ],
    ids=["cut", "broken", "bomb"],
)
def test_compressed_bodies_that_cannot_be_opened(body: bytes, coding: str, status: int, code: str) -> None:
    limits = replace(Limits(), inflated=200_000)
    with recording() as (origin, got), open_house(BODY, origin, limits=limits) as made:
        made.credentials.secrets = {"bot": SECRET}
        answer = ask(made, request("/", body, f"Content-Encoding: {coding}"))
        assert (answer.status, answer.get("x-moat-denied")) == (status, code)
        assert got == []


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "nonsense"])
def test_a_coding_that_is_not_opened_is_refused(coding: str) -> None:
    """The placeholder in it would stay; the credential is not used. Other requests go on."""
    with recording() as (origin, got), open_house(BODY, origin) as made, made.tunnel() as wire:
        made.credentials.secrets = {"bot": SECRET}
        wire.send(request("/", PH.encode(), f"Content-Encoding: {coding}"))
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-denied")) == (403, "body-coding")
        assert "gzip or deflate" in answer.json()["hint"]
        event = made.event()
        assert (event.denial.code, event.grants) == ("body-coding", ())
        assert origin.accepted == 0
    with recording() as (origin, got), open_house(QUERY, origin) as made:
        assert ask(made, request("/", PH.encode(), f"Content-Encoding: {coding}")).status == 200
        assert got[0].body == PH.encode()


def test_over_http2_on_both_sides() -> None:
    got: list[tuple[str | None, bytes]] = []

    def script(server: Any) -> None:
        while True:
            asked = server.request()
            got.append((asked.get(":path"), asked.body))
            server.reply(asked.stream, 200, asked.body, ("x-path", asked.get(":path")))

    secret = "real:abcdefghijk"
    with h2_origin(script) as origin, open_house(ALL, origin) as made, Client.through(made) as client:
        made.credentials.secrets = {"bot": secret}
        body = f"t={quote(PH, safe='')}".encode()
        answer = client.get(
            ("content-type", "application/x-www-form-urlencoded"),
            path=f"/bot{PH}/x",
            method="POST",
            body=body,
        )
        assert got == [(f"/bot{secret}/x", b"t=real%3Aabcdefghijk")]
        assert answer.status == 200
        assert secret.encode() not in answer.body
        assert secret not in answer.headers["x-path"]
        answer = client.get(path=f"/{PH}/{PH}?{PH}", method="POST", body=PH.encode())
        assert (answer.status, answer.headers.get("x-moat-denied")) == (403, "credential-count")


def test_use_that_cannot_be_recorded_does_not_happen() -> None:
    refusal = Denial("journal", "full", "nothing happens unrecorded")
    with recording() as (origin, got), open_house(ALL, origin, on_use=lambda *_: refusal) as made:
        made.credentials.secrets = {"bot": SECRET}
        for data in (request(f"/{PH}"), request("/", PH.encode())):
            assert ask(made, data).status == 503
        assert got == []


@pytest.mark.parametrize("kind", ["guard", "body", "gzip"])
def test_a_large_body_is_not_collected(kind: str) -> None:
    """48 MB to an origin that first reads nothing. Memory is this process's own."""
    piece, pieces, received = (
        random.Random(2).randbytes(24_000).hex().encode(),
        300 if kind == "gzip" else 1000,
        [0],
    )
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 31)

    def script(wire: Wire) -> None:
        wire.message(head_only=True)
        time.sleep(0.3)
        while data := wire.chunk():
            received[0] += len(data)
        wire.until(b"\r\n")
        wire.send(reply(204)[: -len("Content-Length: 0\r\n\r\n")] + b"\r\n")

    host = "other.test" if kind == "guard" else "api.test"
    with tls_origin(script, host) as origin, open_house(BODY, origin) as made, made.tunnel(host) as wire:
        made.credentials.secrets = {"bot": "short"}
        coding = ["Content-Encoding: gzip"] if kind == "gzip" else []
        wire.send(request("/", b"", "Transfer-Encoding: chunked", *coding, host=host))
        before = resident()
        for number in range(pieces):
            data = PH.encode() if number == pieces // 2 and kind != "guard" else piece
            data = squeeze.compress(data) if coding else data
            if data:
                wire.send(b"%x\r\n%b\r\n" % (len(data), data))
        data = squeeze.flush() if coding else b"."
        wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        assert wire.message().status == 204
        assert resident() - before < 24 * 1024 * 1024
    assert received[0] > 5_000_000
