"""Exchanges over real sockets, on every event loop."""

from __future__ import annotations

from tests.proxy.conftest import PLACEHOLDER, SECRET, HouseMaker
from tests.proxy.peers import Origin

API = ("api.test", 443)


def test_injection_is_seen_by_the_origin_and_not_by_the_sandbox(make: HouseMaker, origin: Origin) -> None:
    with make(origins={API: origin}) as house, house.tunnel() as wire:
        for path in ("/one", "/gzip", "/three"):
            wire.send(
                f"GET {path} HTTP/1.1\r\nHost: api.test\r\nAuthorization: Bearer {PLACEHOLDER}\r\n"
                "Accept-Encoding: gzip, br\r\n\r\n".encode()
            )
            answer = wire.message()
            assert answer.status == 200
            seen = dict(answer.json()["headers"])
            masked = "Bearer " + "*" * len(SECRET)
            assert seen["authorization"] == masked
            assert seen["Accept-Encoding"] == "identity"
            assert answer.get("x-seen-authorization") == masked
            assert SECRET not in answer.body.decode()
            event = house.event()
            assert (event.status, event.grants) == (200, ("demo",))
        assert house.credentials.asked == ["demo"] * 3
        assert origin.accepted == 1
