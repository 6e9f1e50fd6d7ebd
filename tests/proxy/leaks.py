"""The leak corpus: responses that bring a credential back, and an eye that finds it in what came out.

`CASES` is deterministic. Each case says what the proxy injects (`scheme`, `secret`), what the server answers
(`headers`, `body`), and `case.leaks(headers, body)` tells what of the secret can still be read in what the
client got. The eye shares no code with the scrubber. Every protocol runs the same cases.
"""

from __future__ import annotations

import base64
import gzip
import html
import itertools
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, quote_plus, unquote_to_bytes

PIECE = 7  # bytes in a row that count as a leak
_KINDS = {
    "oauth": "sk-ant-oat01-Qk7Zp2vXw9LmT4sRb8YdNc3FgHj6KeUa0iOqWtEyVuIxSzAlDfGhJkPoCrMnBvTsQwXyZaBcDeFgHi-AA",
    "github": "ghp_9aZ8bY7cX6dW5eV4fU3gT2hS1iR0jQkPlOmN",
    "cloud": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzq/EXA+KEY",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MjQyNDIiLCJuIjoiWm9lIn0.Zk3q_8tL-2vR7xWm1nPc5dYb9sKg",
    "special": "Tr0ub4dor&3~?>< \"q'/\\%41+=",
    "short": "hunter2-hunter2",
}
_USER = "x-access-token"


@dataclass(frozen=True)
class Case:
    """One response with a secret in it. `headers` are (name, value), without framing."""

    name: str
    secret: bytes
    scheme: str  # `bearer`, or `basic` with the user `x-access-token`
    headers: tuple[tuple[str, str], ...]
    body: bytes
    encoding: str = ""  # of the body as it is here

    def leaks(self, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """The longest piece of the secret that can be read in a response; b"" if it has fewer than PIECE bytes."""
        text = "\n".join(f"{name}: {value}" for name, value in headers).encode("latin-1")
        return max(_piece(self.secret, text, fold=True), _piece(self.secret, body), key=len)

    def __str__(self) -> str:
        return self.name


# --- what servers do to text -----------------------------------------------------------------------


def _every(step: int, escape: Callable[[int], str]) -> Callable[[bytes], bytes]:
    """Escapes each `step`-th byte."""
    return lambda text: b"".join(
        escape(byte).encode() if at % step == 0 else bytes((byte,)) for at, byte in enumerate(text)
    )


def _shifted(before: str, *, url: bool = False, pad: bool = True) -> Callable[[bytes], bytes]:
    encode = base64.urlsafe_b64encode if url else base64.b64encode

    def shifted(text: bytes) -> bytes:
        out = encode(before.encode() + text + b"|tail")
        return out if pad else out.rstrip(b"=")

    return shifted


def _lines(width: int, end: str) -> Callable[[bytes], bytes]:
    def broken(text: bytes) -> bytes:
        out = base64.b64encode(b"POST /echo HTTP/1.1 and something more: " + text + b" (end)").decode()
        return end.join(out[at : at + width] for at in range(0, len(out), width)).encode() + end.encode()

    return broken


def _then(*steps: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def all_of_them(text: bytes) -> bytes:
        for step in steps:
            text = step(text)
        return text

    return all_of_them


_percent = _every(1, lambda byte: f"%{byte:02x}")
_unicode = _every(1, lambda byte: f"\\u{byte:04x}")
_decimal = _every(1, lambda byte: f"&#{byte};")


def _quoted(text: bytes) -> bytes:
    return quote_from_bytes(text, safe="").encode()


def _json(text: bytes) -> bytes:
    return json.dumps(text.decode()).encode()


ESCAPES: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda text: text,
    "percent lower": _percent,
    "percent upper": _every(1, lambda byte: f"%{byte:02X}"),
    "percent where needed": _quoted,
    "percent where needed, lower": lambda text: re.sub(rb"%..", lambda m: m[0].lower(), _quoted(text)),
    "form": lambda text: quote_plus(text).encode(),
    "percent every 2nd": _every(2, lambda byte: f"%{byte:02X}"),
    "percent every 5th": _every(5, lambda byte: f"%{byte:02x}"),
    "percent every 17th": _every(17, lambda byte: f"%{byte:02x}"),
    "percent twice": _then(_percent, _quoted),
    "percent three times": _then(_percent, _quoted, _quoted),
    "json": _json,
    "json twice": _then(_json, _json),
    "json three times": _then(_json, _json, _json),
    "json slashes": lambda text: _json(text).replace(b"/", b"\\/"),
    "json unicode": _unicode,
    "json unicode upper": _every(1, lambda byte: f"\\u{byte:04X}"),
    "json unicode every 3rd": _every(3, lambda byte: f"\\u{byte:04x}"),
    "json unicode every 11th": _every(11, lambda byte: f"\\u{byte:04X}"),
    "json in json unicode": _then(_unicode, _json),
    "json for html": lambda text: _json(html.escape(text.decode()).encode()).replace(b"&", b"\\u0026"),
    "json of decimal for html": lambda text: _decimal(text).replace(b"&", b"\\u0026"),
    "javascript": _every(1, lambda byte: f"\\x{byte:02x}"),
    "javascript upper every 2nd": _every(2, lambda byte: f"\\x{byte:02X}"),
    "javascript braces": _every(1, lambda byte: f"\\u{{{byte:x}}}"),
    "python unicode": _every(1, lambda byte: f"\\U{byte:08x}"),
    "c octal": _every(1, lambda byte: f"\\{byte:03o}"),
    "shell": lambda text: re.sub(rb"([^A-Za-z0-9])", rb"\\\1", text),
    "html": lambda text: html.escape(text.decode()).encode(),
    "html decimal": _decimal,
    "html decimal, zeros": _every(1, lambda byte: f"&#{byte:07d};"),
    "html decimal every 4th": _every(4, lambda byte: f"&#{byte};"),
    "html hex": _every(1, lambda byte: f"&#x{byte:x};"),
    "html hex upper": _every(1, lambda byte: f"&#X{byte:02X};"),
    "html hex, zeros": _every(2, lambda byte: f"&#x{byte:05x};"),
    "html twice": _then(_decimal, lambda text: html.escape(text.decode()).encode()),
    "html names": lambda text: re.sub(
        rb"[-_./+=:]",
        lambda m: {
            b"_": b"&lowbar;",
            b".": b"&period;",
            b"/": b"&sol;",
            b"+": b"&plus;",
            b"=": b"&equals;",
        }.get(m[0], m[0]),
        text,
    ),
    "percent of json unicode": _then(_unicode, _quoted),
    "json of percent": _then(_percent, _json),
    "html of percent": _then(_percent, _decimal),
    "percent of html": _then(_decimal, _quoted),
    "mixed": lambda text: b"".join(
        form(text[at : at + 3])
        for at, form in zip(
            range(0, len(text), 3), itertools.cycle([_percent, _unicode, _decimal, lambda t: t]), strict=False
        )
    ),
    "base64 0": _shifted(""),
    "base64 1": _shifted("x"),
    "base64 2": _shifted("xy"),
    "base64 url 0": _shifted("", url=True),
    "base64 url 1": _shifted("~", url=True, pad=False),
    "base64 url 2": _shifted("ab", url=True, pad=False),
    "base64 of a header": _shifted("GET / HTTP/1.1\r\nauthorization: Bearer "),
    "base64 mime": _lines(76, "\r\n"),
    "base64 pem": _lines(64, "\n"),
    "base64 mime in json": _then(_lines(76, "\r\n"), lambda text: text.replace(b"\r\n", b"\\r\\n")),
    "base64 mime in percent": _then(_lines(76, "\n"), _quoted),
    "base64 indented": _lines(72, "\n    "),
    "base64 in a url": _then(_shifted("??>>~~"), _quoted),
    "base64 in json": _then(_shifted("??>>~~"), lambda text: text.replace(b"/", b"\\/")),
    "base64 in html": _then(_shifted("a"), _every(3, lambda byte: f"&#{byte};")),
    "base64 in json unicode": _then(_shifted("ab"), _unicode),
    "hex": lambda text: text.hex().encode(),
    "hex upper": lambda text: text.hex().upper().encode(),
    "hex colons": lambda text: text.hex(":").encode(),
    "hex spaces upper": lambda text: text.hex(" ").upper().encode(),
    "hex in percent": _then(lambda text: text.hex().encode(), _percent),
    "numbers": lambda text: json.dumps(list(text)).encode(),
    "numbers compact": lambda text: json.dumps(list(text), separators=(",", ":")).encode(),
    "utf-16 le": lambda text: text.decode().encode("utf-16-le"),
    "utf-16 be": lambda text: text.decode().encode("utf-16-be"),
    "utf-32": lambda text: text.decode().encode("utf-32"),
    "python bytes": lambda text: repr(text).encode(),
}
_WIDE = ("utf-16 le", "utf-16 be", "utf-32")


# --- and where they put it -------------------------------------------------------------------------

_noise = random.Random(4).randbytes
CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "alone": lambda text: text,
    "text": lambda text: b"You sent: " + text + b"\n",
    "json": lambda text: b'{"id": 7, "headers": {"authorization": "Bearer ' + text + b'"}, "n": "\xc3\xa9"}',
    "events": lambda text: b"event: echo\ndata: {}\n\nevent: echo\ndata: " + text + b"\n\ndata: [DONE]\n\n",
    "page": lambda text: b"<!doctype html><p>It&#39;s &lt;" + text + b"&gt; you&#x27;re looking for &amp; more",
    "query": lambda text: b"a=1&b=%7B%22x%22%3A&token=" + text + b"&z=%2Fhome%2F",
    "binary": lambda text: _noise(100) + b"\x00\xff" + text + b"\xff" + _noise(100),
    "twice": lambda text: text + b" " + text,
    "key": lambda text: b'{"' + text + b'":{"\\u00e9":"\\n"}}',
    "end of a line": lambda text: b"x\r\nToken:\t" + text + b"\r\n\r\n",
}  # fmt: skip


def _generated() -> Iterator[Case]:
    containers = itertools.cycle(CONTAINERS.items())
    for (kind, secret), (escape, form) in itertools.product(_KINDS.items(), ESCAPES.items()):
        text = form(secret.encode())
        for name, wrap in itertools.islice(containers, 1 if kind == "short" else 2):
            if kind == "special" and ("every" in escape or escape == "mixed"):
                continue  # nobody can tell what was escaped and what was there
            if escape not in _WIDE or name not in {"json", "page", "key"}:
                yield Case(f"{kind}/{escape}/{name}", secret.encode(), "bearer", (), wrap(text))
        next(containers)  # no escape always in the same container


def _basic() -> Iterator[Case]:
    """Echoes of `Basic`: of the header's value, and of what it was made of."""
    containers = itertools.cycle(CONTAINERS.items())
    for kind, (escape, form) in itertools.product(("github", "special"), ESCAPES.items()):
        name, wrap = next(containers)
        secret = _KINDS[kind].encode()
        value = base64.b64encode(f"{_USER}:".encode() + secret)
        if escape not in _WIDE:
            yield Case(f"basic {kind}/{escape}/{name}", secret, "basic", (), wrap(form(value)))


def _compressed() -> Iterator[Case]:
    def raw_deflate(text: bytes) -> bytes:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(text) + packer.flush()

    packers = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}
    forms = ("plain", "base64 1", "json unicode", "percent upper", "hex", "html decimal", "mixed")
    for escape, kind in itertools.product(forms, ("oauth", "cloud")):
        secret = _KINDS[kind].encode()
        text = CONTAINERS["json"](ESCAPES[escape](secret))
        for coding, pack in packers.items():
            yield Case(f"{coding}/{kind}/{escape}", secret, "bearer", (), pack(text), coding)
        yield Case(f"raw deflate/{kind}/{escape}", secret, "bearer", (), raw_deflate(text), "deflate")
        halves = gzip.compress(text[:70]) + gzip.compress(text[70:])
        yield Case(f"gzip in members/{kind}/{escape}", secret, "bearer", (), halves, "gzip")


def _in_headers() -> Iterator[Case]:
    names = ("X-Echo", "x-ECHO", "SET-cookie", "Location", "WWW-Authenticate", "warning", "Link", "eTaG")
    forms = (
        "plain", "percent lower", "percent where needed", "json", "base64 0", "base64 url 1", "base64 of a header",
        "hex", "hex upper", "html decimal", "json unicode", "percent every 5th",
    )  # fmt: skip
    for name, escape in itertools.product(names, forms):
        for kind in ("oauth", "cloud" if "every" in escape else "special"):
            secret = _KINDS[kind].encode()
            value = f"a=1; b={ESCAPES[escape](secret).decode()}; c"
            yield Case(f"header {name}/{kind}/{escape}", secret, "bearer", ((name, value),), b"ok")
    for kind in ("oauth", "github"):
        secret = _KINDS[kind]
        names = (secret, secret.lower(), secret.upper(), secret.swapcase(), f"X-{secret.title()}-Seen")
        for number, spelled in enumerate(names):
            yield Case(f"header name {number}/{kind}", secret.encode(), "bearer", ((spelled, "1"),), b"ok")


def _by_hand() -> Iterator[Case]:
    secret = _KINDS["oauth"]
    raw = secret.encode()
    bodies = {
        "httpbin": json.dumps({"headers": {"Authorization": f"Bearer {secret}", "Host": "x"}}, indent=2).encode(),
        "var_dump": f'array(1) {{\n  ["HTTP_AUTHORIZATION"]=>\n  string({len(raw) + 7}) "Bearer {secret}"\n}}'.encode(),
        "curl -v": f"> GET / HTTP/1.1\r\n> Authorization: Bearer {secret}\r\n> Accept: */*\r\n".encode(),
        "cgi": f"HTTP_AUTHORIZATION=Bearer {secret}\nHTTP_HOST=x\n".encode(),
        "python repr": repr({"authorization": f"Bearer {secret}"}).encode(),
        "ruby": f'{{"HTTP_AUTHORIZATION"=>"Bearer {secret}"}}'.encode(),
        "go": f"map[Authorization:[Bearer {secret}]]".encode(),
        "node buffer": json.dumps({"type": "Buffer", "data": list(raw)}).encode(),
        "rust": f'HeaderMap {{ "authorization": b"Bearer {secret}" }}'.encode(),
        "xml": f'<h n="authorization" v="Bearer {secret}"/>'.encode(),
        "markdown": f"| authorization | Bearer {secret.replace('-', chr(92) + '-')} |".encode(),
        "data url": b'<img src="data:text/plain;base64,' + base64.b64encode(raw) + b'">',
        "quoted": b'{"error":"bad token \\"' + raw + b'\\""}',
        "shell trace": b"+ curl -H 'Authorization: Bearer " + raw + b"'",
        "jsonp": b"/**/cb(" + json.dumps({"t": secret}).encode() + b");",
        "lines": (raw + b"\n") * 5,
        "no gap": raw * 3,
        "begun anew": raw[:6] + raw,
        "begun twice": raw[:5] + b"!" + raw[:3] + raw,
        "reflected query": b'<a href="/login?next=%2F&amp;token=' + _quoted(raw) + b'">',
        "redirect page": b'<meta http-equiv=refresh content="0;url=/?t=' + _percent(raw) + b'">',
        "ndjson": b"".join(b'{"n":%d,"t":"%b"}\n' % (n, raw) for n in range(4)),
        "multipart": b'--b\r\nContent-Disposition: form-data; name="t"\r\n\r\n' + raw + b"\r\n--b--\r\n",
        "http in http": b"HTTP/1.1 200 OK\r\nX-T: " + raw + b"\r\n\r\n" + raw,
        "grpc": b"\x00\x00\x00\x00\x6a\x0a\x68" + raw,
        "large text": b"lorem ipsum dolor &amp; sit \\n amet %20 " * 1700 + raw + b" consectetur" * 500,
        "large noise": _noise(66_000).translate(None, b"&%\\") + _unicode(raw) + _noise(3_000),
        "large zeros": bytes(65_536 - 40) + raw + bytes(9_000),
        "large base64": base64.b64encode(_noise(50_002) + raw + _noise(3_000)),
        "large hex": (_noise(30_000) + raw + _noise(2_000)).hex().encode(),
    }  # fmt: skip
    for name, body in bodies.items():
        yield Case(f"by hand/{name}", raw, "bearer", (), body)


CASES = tuple(itertools.chain(_generated(), _basic(), _compressed(), _in_headers(), _by_hand()))


# --- the eye ---------------------------------------------------------------------------------------

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{12,}")
_HEX = re.compile(rb"[0-9A-Fa-f]{16,}")
_NUMBERS = re.compile(rb"(?:\d{1,3}, ?){7,}\d{1,3}")
_BACKSLASH = re.compile(
    rb"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|u\{([0-9A-Fa-f]+)\}|U([0-9A-Fa-f]{8})|([0-7]{3})|(.))",
    re.DOTALL,
)


def _piece(secret: bytes, text: bytes, *, fold: bool = False) -> bytes:
    """The longest piece of `secret`, of PIECE bytes or more, that can be read in `text`."""
    if len(text) > 4000:  # by parts, which overlap by more than any form of a secret
        return max((_piece(secret, text[at : at + 4000]) for at in range(0, len(text), 2600)), key=len)
    readings = _readings(text)
    if fold:
        readings |= {reading.lower() for reading in readings}
    wanted = [secret, secret.lower()] if fold else [secret]
    return max((_common(each, reading) for each in wanted for reading in readings), key=len)


def _common(secret: bytes, text: bytes) -> bytes:
    """The longest piece of `secret` in `text`. Of PIECE bytes, four are always at a multiple of four."""
    best = b""
    for middle in range(0, len(secret) - 3, 4):
        start, end = middle, middle + 4
        if secret[start:end] in text:
            while end < len(secret) and secret[start : end + 1] in text:
                end += 1
            while start and secret[start - 1 : end] in text:
                start -= 1
            best = max(best, secret[start:end], key=len)
    return best if len(best) >= PIECE else b""


def _readings(text: bytes) -> set[bytes]:
    """What text says when it is opened in every way, over and over."""
    seen, new = {text}, {text}
    for _ in range(4):
        new = {opened for each in new for opened in _opened(each)} - seen
        seen |= new
    return seen | {binary for each in seen for binary in _binary(each)}


def _opened(text: bytes) -> Iterator[bytes]:
    yield unquote_to_bytes(text)
    yield html.unescape(text.decode("latin-1")).encode("utf-8", "surrogatepass") if b"&" in text else text
    yield _BACKSLASH.sub(_backslash, text)
    if b"\n" in text or b"\r" in text:
        yield re.sub(rb"[\r\n]+[ \t]*", b"", text)
    if b"\x00" in text:
        yield text.replace(b"\x00", b"")
    if b"+" in text:
        yield text.replace(b"+", b" ")


def _backslash(match: re.Match[bytes]) -> bytes:
    if match[5]:
        return bytes((int(match[5], 8) & 255,))
    if match[6]:
        return {b"n": b"\n", b"r": b"\r", b"t": b"\t"}.get(match[6], match[6])
    code = int(next(filter(None, match.groups())), 16)
    return chr(code).encode("utf-8", "surrogatepass") if code < 0x110000 else b""


def _binary(text: bytes, depth: int = 2) -> Iterator[bytes]:
    found = []
    for match in _BASE64.finditer(text):
        run = match[0].translate(bytes.maketrans(b"-_", b"+/"))
        for start in range(4):
            part = run[start:]
            part = part[:-1] if len(part) % 4 == 1 else part
            found.append(base64.b64decode(part + b"=" * (-len(part) % 4)))
    spaced = re.sub(rb"(?<=[0-9A-Fa-f]{2})[ :](?=[0-9A-Fa-f]{2})", b"", text)
    for match in itertools.chain(_HEX.finditer(text), _HEX.finditer(spaced)):
        for start in (0, 1):
            run = match[0][start:]
            found.append(bytes.fromhex(run[: len(run) // 2 * 2].decode()))
    found += [
        bytes(int(number) & 255 for number in re.split(rb", ?", match[0]))
        for match in _NUMBERS.finditer(text)
    ]
    yield from found
    if depth > 1:
        for each in found:
            yield from _binary(each, depth - 1)
