"""What the gateway says itself: indexes and errors, as a page for people or as JSON for programs.

The pages stand alone: one style, no script, nothing fetched. Everything that comes from elsewhere (names,
paths, states) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Any

from moat.dataclass import dataclass
from moat.proxy.fields import Headers
from moat.proxy.head import RequestHead
from moat.proxy.render import render_response
from moat.runtime.endpoints.names import Place
from moat.runtime.endpoints.routes import Route

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #667085; --line: #e4e7ec; --page: #fbfbfa;
  --accent: #2f5d50; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #98a2b3; --line: #2b313d; --page: #14171d; --accent: #8fc7b3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 44rem; margin: 0 auto; padding: 4.5rem 1.5rem; }
h1 { font-size: 1.5rem; font-weight: 600; letter-spacing: -0.01em; margin: 0 0 .35rem; }
h2 { font-size: 1rem; font-weight: 600; margin: 0; }
p { margin: 0 0 1rem; }
.soft { color: var(--soft); }
section { border-top: 1px solid var(--line); padding: 1.1rem 0 1.2rem; }
h1 + .soft, .lead { margin-bottom: 2.2rem; }
ul { list-style: none; margin: .45rem 0 0; padding: 0; }
li { display: flex; gap: 1rem; justify-content: space-between; padding: .18rem 0; }
a { color: var(--accent); text-decoration: none; overflow-wrap: anywhere; }
a:hover, a:focus-visible { text-decoration: underline; }
code { font: .92em ui-monospace, monospace; }
footer { border-top: 1px solid var(--line); padding-top: 1rem; font-size: .85rem; color: var(--soft); }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_REASONS = {
    200: b"OK", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found", 421: b"Misdirected Request",
    502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip
_RETRY_SECONDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer of the gateway's own."""

    status: int
    title: str
    text: str  # one sentence for people, and the `detail` of the JSON
    value: dict[str, Any] = field(default_factory=dict)  # what else the JSON says
    sections: tuple[str, ...] = ()  # HTML
    retry: bool = False  # it may be different in a moment: the page looks again by itself

    def wire(self, head: RequestHead | None, *, close: bool) -> bytes:
        """The whole answer to `head` (None: there was no readable request)."""
        as_html = head is not None and wants_html(head)
        body = self._html() if as_html else self._json()
        headers: list[tuple[bytes, bytes]] = [
            (b"Content-Type", b"text/html; charset=utf-8" if as_html else b"application/json"),
            (b"Content-Length", str(len(body)).encode()),
            (b"Cache-Control", b"no-store"),
            (b"Vary", b"Accept"),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"X-Frame-Options", b"DENY"),
            (b"Referrer-Policy", b"no-referrer"),
            (b"Cross-Origin-Resource-Policy", b"same-origin"),
            (b"Content-Security-Policy", f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
             "frame-ancestors 'none'; base-uri 'none'; form-action 'none'".encode()),
        ]  # fmt: skip
        if self.status >= 400:
            headers.append((b"X-Moat-Error", b"endpoint"))
        if self.retry:
            headers.append((b"Retry-After", str(_RETRY_SECONDS).encode()))
        if close:
            headers.append((b"Connection", b"close"))
        wire = render_response(self.status, _REASONS[self.status], _tuple(headers))
        return wire if head is not None and head.method == b"HEAD" else wire + body

    def _json(self) -> bytes:
        error = {"error": self.title, "detail": self.text} if self.status >= 400 else {}
        return json.dumps(error | self.value, ensure_ascii=False).encode() + b"\n"

    def _html(self) -> bytes:
        again = f'<meta http-equiv="refresh" content="{_RETRY_SECONDS}">' if self.retry else ""
        text = f"{self.text} This page looks again by itself." if self.retry else self.text
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"{again}<title>{html.escape(self.title)} · Moat</title><style>{_STYLE}</style></head>"
            "<body><main>"
            f'<h1>{html.escape(self.title)}</h1><p class="soft">{html.escape(text)}</p>'
            f"{''.join(self.sections)}<footer>Moat serves this on loopback, for the programs of this machine "
            "only.</footer></main></body></html>\n"
        ).encode()


def _tuple(headers: list[tuple[bytes, bytes]]) -> Headers:
    return tuple(headers)


def wants_html(head: RequestHead) -> bool:
    """Browsers name text/html when they show a page; programs name JSON, or take anything."""
    accept = b",".join(value for name, value in head.headers if name.lower() == b"accept")
    return b"text/html" in accept


def index(routes: Sequence[Route], port: int) -> Page:
    """All runs with endpoints."""
    text = "These runs have endpoints." if routes else "No run has endpoints now."
    return Page(
        status=200, title="Runs", text=text, sections=_sections(routes, port),
        value={"runs": [described(route, port) for route in routes]},
    )  # fmt: skip


def run_index(route: Route, port: int) -> Page:
    return Page(
        status=200, title=route.name, text="The endpoints of this run.", sections=_sections([route], port),
        value=described(route, port),
    )  # fmt: skip


def unknown(place: Place, routes: Sequence[Route], port: int) -> Page:
    """A run or an endpoint that is not there, with what is."""
    here = next((route for route in routes if route.name == place.run), None)
    if here is not None:
        text = f"The run {here.name} has no endpoint {place.endpoint}. It has these."
        shown: Sequence[Route] = [here]
    else:
        text = f"No run called {place.run} is alive with endpoints. " + (
            "These are." if routes else "No run has any; a run gets them by `ports` in its agent.yaml."
        )
        shown = routes
    value = {"runs": [described(route, port) for route in shown]}
    return Page(
        status=404, title="Not here", text=text, sections=_sections(shown, port), value=value, retry=False
    )


def down(route: Route, endpoint: str, reason: str, state: str) -> Page:
    """The run is there and its server is not."""
    port = route.endpoints[endpoint].port
    starting = state in {"created", "starting"}
    waiting = "Its command has not started yet." if starting else f"Its command is {state}."
    text = f"Port {port} in the sandbox of {route.name}: {reason}. {waiting}"
    value = {"run": route.name, "endpoint": endpoint, "port": port, "reason": reason, "state": state}
    return Page(
        status=503 if starting else 502, title="The server does not answer", text=text, value=value,
        retry=True,
    )  # fmt: skip


def described(route: Route, port: int) -> dict[str, Any]:
    ends = {
        name: {"url": Place(route.name, name).url(port), "port": endpoint.port}
        for name, endpoint in route.endpoints.items()
    }
    return {"id": route.id, "name": route.name, "url": Place(route.name).url(port), "endpoints": ends}


def _sections(routes: Iterable[Route], port: int) -> tuple[str, ...]:
    return tuple(_section(route, port) for route in routes)


def _section(route: Route, port: int) -> str:
    lines = []
    for name, endpoint in route.endpoints.items():
        url = html.escape(Place(route.name, name).url(port))
        lines.append(
            f'<li><a href="{url}">{url}</a><span class="soft">port {endpoint.port}</span></li>'
        )  # fmt: skip
    return (
        f'<section><h2>{html.escape(route.name)}</h2><span class="soft"><code>{html.escape(route.id)}</code>'
        f"</span><ul>{''.join(lines)}</ul></section>"
    )
