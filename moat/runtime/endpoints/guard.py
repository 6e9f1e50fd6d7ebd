"""What other web sites may ask of an endpoint: to be opened by the user, and nothing else.

The gateway listens on loopback, so every page in the user's browser can send to it. Browsers let pages read
only their own site's answers, but sending alone does harm: a form posted, a WebSocket opened (which no
browser holds back, and over which a dev server tells its sources), an image loaded to find out what there
is. A run's page is a stranger to the other runs' endpoints as well: agents do not reach each other through
their user's browser. Within one run everything may talk to everything: `web.x` is the site of `api.x`.

Programs other than browsers send neither field and are let through.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from moat.proxy.fields import Headers
from moat.proxy.head import RequestHead
from moat.runtime.endpoints.names import Place, parse_name

_SAFE = frozenset({b"GET", b"HEAD"})


def foreign(head: RequestHead, place: Place) -> str:
    """Why a request comes from somewhere that may not send it; "" when it may."""
    if _opened(head):
        return ""
    if origin := _one(head.headers, b"origin"):
        # Also where a browser says cross-site: to it, http and https of one name are two sites.
        kin = _kin(origin, place)
        return "" if kin else f"a page of {origin.decode('latin-1')[:200]} sent this"
    if _one(head.headers, b"sec-fetch-site") == b"cross-site":
        return "a page of another site sent this"
    return ""


def _opened(head: RequestHead) -> bool:
    """A link that the user followed to a page of its own: not a frame, not a form that changes something."""
    return (
        head.method in _SAFE
        and not head.upgrade
        and _one(head.headers, b"sec-fetch-mode") == b"navigate"
        and _one(head.headers, b"sec-fetch-dest") == b"document"
    )


def _kin(origin: bytes, place: Place) -> bool:
    """Whether an Origin is of the same run (or, for the page of all runs, of exactly that page)."""
    try:
        name = urlsplit(origin.decode("ascii")).hostname or ""
    except ValueError:
        return False
    found = parse_name(name)
    return found is not None and found.run == place.run


def _one(headers: Headers, wanted: bytes) -> bytes:
    """The value of a field, or of its last one: what a browser sends comes once."""
    found = [value for name, value in headers if name.lower() == wanted]
    return found[-1] if found else b""
