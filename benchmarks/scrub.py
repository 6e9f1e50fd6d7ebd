"""What it costs to search bodies for a credential: CPU seconds per GB, by kind of body and size of piece.

python benchmarks/scrub.py
"""

from __future__ import annotations

import base64
import json
import os
import time

from moat.proxy.scrub import Scrubber, mask_fields

_SIZE = 1 << 22
_SECRET = b"sk-ant-oat01-" + base64.urlsafe_b64encode(bytes(range(71)))
_BASIC = base64.b64encode(b"x-access-token:" + _SECRET).rstrip(b"=")
_RECORDS = [
    {"id": number, "name": f"élan {number}", "url": f"https://api.test/{number}?a=b&c=d"}
    for number in range(60_000)
]
_PAGE = b"<p>It&#39;s &lt;b&gt; you&#x27;re looking for &amp; more, %20 a%3Ab \\n \\u003c</p>\n"
BODIES = {
    "random": os.urandom(_SIZE),
    "zeros": bytes(_SIZE),
    "json": json.dumps(_RECORDS).encode()[:_SIZE],
    "base64": base64.b64encode(os.urandom(_SIZE))[:_SIZE],
    "hex": os.urandom(_SIZE // 2).hex().encode(),
    "html full of escapes": (_PAGE * (_SIZE // len(_PAGE) + 1))[:_SIZE],
}


def seconds_per_gb(secrets: tuple[bytes, ...], body: bytes, piece: int) -> float:
    best = float("inf")
    for _ in range(5):
        scrubber = Scrubber(secrets)
        began = time.process_time()
        for at in range(0, len(body), piece):
            scrubber.feed(body[at : at + piece])
        best = min(best, time.process_time() - began)
    return best / len(body) * 1e9


def microseconds(task: object, *arguments: object) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(2000):
            task(*arguments)
        best = min(best, time.process_time() - began)
    return best / 2000 * 1e6


def main() -> None:
    for name, secrets in (("bearer", (_SECRET,)), ("basic", (_SECRET, _BASIC))):
        for piece in (262_144, 65_536, 16_384):
            costs = "  ".join(
                f"{kind} {seconds_per_gb(secrets, body, piece):.2f}" for kind, body in BODIES.items()
            )
            print(f"{name:6} {piece // 1024:3} KiB  s/GB: {costs}")
    event = b'event: ping\ndata: {"type":"content_block_delta","delta":{"text":"hello"}}\n\n'
    fields = b"".join(b"\r\nX-Header-%d: some value %d" % (number, number) for number in range(12))
    print(f"an event {microseconds(Scrubber((_SECRET,)).feed, event):.1f} us")
    print(f"1 KB of JSON {microseconds(Scrubber((_SECRET,)).feed, BODIES['json'][:1024]):.1f} us")
    print(f"a head of 12 fields {microseconds(mask_fields, fields, (_SECRET,)):.1f} us")


if __name__ == "__main__":
    main()
