"""`ports:` of a run: its ingress, its route, and the care that there is a gateway."""

from __future__ import annotations

import logging

import anyio

from moat import config
from moat.errors import MoatError
from moat.paths import Home
from moat.runtime.endpoints import names, routes, spawn
from moat.runtime.endpoints.ingress import Ingress
from moat.runtime.endpoints.names import Place
from moat.runtime.endpoints.routes import Route
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import Sandbox

_LOOK = 2.0  # seconds between two looks at whether the gateway is alive
_log = logging.getLogger(__name__)


class PortsPart(Part):
    name = "ports"

    def __init__(self) -> None:
        self._run: RunContext | None = None
        self._ingress: Ingress | None = None
        self._route: Route | None = None
        self._port = 0

    async def prepare(self, run: RunContext) -> Addition:
        """Open ingress and route. Raises UsageError, and StartError for a name in use or no gateway."""
        for name, port in run.request.ports.items():
            config.check_port(name, port)
        self._run = run
        self._ingress = Ingress(run.directory / "ports")
        ends = {name: self._ingress.open(name, port) for name, port in run.request.ports.items()}
        self._route = Route(run.id, run.name, ends)
        wanted = spawn.wanted_port(run.home)
        run.progress("opening endpoints")
        self._port = await anyio.to_thread.run_sync(_announce, run.home, self._route, wanted)
        run.start("endpoints", self._ingress.serve)
        run.start("gateway", self._care)
        urls = {name: Place(run.name, name).url(self._port) for name in ends}
        return Addition(env=names.environment(run.name, tuple(ends), self._port), endpoints=urls)

    async def made(self, sandbox: Sandbox) -> None:
        assert self._run
        assert self._route
        assert self._ingress
        self._ingress.use(sandbox)
        for name, endpoint in self._route.endpoints.items():
            url = Place(self._run.name, name).url(self._port)
            self._run.journal.record("endpoint.opened", endpoint=name, port=endpoint.port, url=url)

    async def ended(self) -> None:
        """The server is gone with the command; what is still connected has nobody to talk to."""
        if self._run and self._route and self._ingress:
            self._ingress.close()
            routes.remove(self._run.home, self._run.id)
            for name, endpoint in self._route.endpoints.items():
                self._run.journal.record("endpoint.closed", endpoint=name, port=endpoint.port)
            self._route = None

    async def aclose(self) -> None:
        if self._run:
            routes.remove(self._run.home, self._run.id)
        if self._ingress:
            self._ingress.close()

    async def _care(self) -> None:
        """Start a gateway again that was killed, on its port: it belongs to no run, so each one looks."""
        assert self._run
        home = self._run.home
        wanted = spawn.Wanted(self._port, fixed=True, where="this run")
        told = False
        while True:
            await anyio.sleep(_LOOK)
            if self._route is None or spawn.alive(home) or not home.endpoints.exists():
                continue
            try:
                await anyio.to_thread.run_sync(_announce, home, self._route, wanted)
                told = False
            except (MoatError, OSError) as error:
                if not told:
                    _log.warning("the gateway of endpoints was not started again: %s", error)
                told = True


def _announce(home: Home, route: Route, wanted: spawn.Wanted) -> int:
    """Add the route and return the gateway's port: in one step, so that it cannot end in between."""
    with spawn.changing(home):
        routes.add(home, route)
        try:
            return spawn.ensure(home, wanted)
        except BaseException:
            routes.remove(home, route.id)
            raise
