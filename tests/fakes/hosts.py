"""Several hosts of one vendor, played by one TLS server on loopback."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from aiohttp import web

from tests.fakes.pki import make_pki
from tests.fakes.web import served


@dataclass
class FakeHosts:
    """Lets the real credential in, and nothing else; writes down what it was asked."""

    hosts: ClassVar[tuple[str, ...]]

    directory: Path
    api_key: str = ""
    access: str = ""  # of a login
    refresh: str = ""
    asked: list[Any] = field(default_factory=list)  # what was asked of which `host`
    seen: list[str] = field(default_factory=list)  # what clients sent, as text
    renewals: int = 0
    ca_file: Path = Path()
    port: int = 0

    @contextlib.contextmanager
    def serve(self) -> Iterator[Self]:
        self.ca_file, certificate = make_pki(self.directory, self.hosts)
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._serve)
        with served(app, certificate) as self.port:
            yield self

    @abstractmethod
    async def _serve(self, request: web.Request) -> web.StreamResponse: ...

    def connect_to(self) -> dict[str, str]:
        """For `upstream.connect_to` of config.yaml."""
        return {f"{host}:443": f"127.0.0.1:{self.port}" for host in self.hosts}

    def answered(self, host: str) -> list[Any]:
        return [one for one in self.asked if one.host == host]
