"""Services of a run: a database beside the sandbox, reachable at 127.0.0.1 and from nowhere else.

They live in the sandbox's own network namespace, which has nothing but loopback: no bridge exists, and what
the sandbox cannot reach, a service cannot either. A password is made for each run; it is worth nothing
outside of it. What the runtime does with them is in `pod`.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from urllib.parse import quote

from moat.config import ServiceConfig
from moat.config.image import SERVICE_PORTS
from moat.dataclass import dataclass
from moat.runtime.deps.resolve import machine
from moat.runtime.deps.selection import select
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import Sandbox, ServiceEnd, ServiceSpec

ADDRESS = "127.0.0.1"
_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 32
_LINE = 200  # characters of a log's line that are told


@dataclass(frozen=True, slots=True)
class Access:
    """How a program in the sandbox reaches the service."""

    scheme: str
    user: str
    password: str
    database: str

    def variables(self, name: str) -> dict[str, str]:
        port = SERVICE_PORTS[name]
        user, password, database = (quote(v, safe="") for v in (self.user, self.password, self.database))
        place = f"{user}:{password}@{ADDRESS}:{port}/{database}"
        values = {
            "HOST": ADDRESS,
            "PORT": str(port),
            "USER": self.user,
            "PASSWORD": self.password,
            "DB": self.database,
            "URL": f"{self.scheme}://{place}",
        }
        return {f"MOAT_{name.upper()}_{key}": value for key, value in values.items()}


class Services(Part):
    """The services of one run. The runtime starts them when it makes the sandbox.

    One that ends early does not end the run: a job may be done without it. It is told at once.
    """

    name = "services"

    def __init__(self) -> None:
        self._run: RunContext | None = None
        self._sandbox: Sandbox | None = None
        self._names: tuple[str, ...] = ()
        self._ended: tuple[str, ...] = ()

    async def prepare(self, run: RunContext) -> Addition:
        env: dict[str, str] = {}
        specs = []
        for name, version in select(run.request.dependencies, machine=machine()).services:
            config = run.request.services.get(name, ServiceConfig())
            spec, access = _MAKERS[name](config.image or f"{name}:{version}", config)
            spec = replace(spec, wait=config.wait, memory=config.memory)
            env |= access.variables(name)
            specs.append(spec)
            run.journal.record("service.requested", name=name, image=spec.image)
        self._run, self._names = run, tuple(spec.name for spec in specs)
        return Addition(env=env, services=tuple(specs))

    async def made(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def started(self) -> None:
        assert self._run is not None
        for name in self._names:
            self._run.start(f"service {name}", partial(self._watch, name))

    async def _watch(self, name: str) -> None:
        assert self._run is not None
        assert self._sandbox is not None
        end = await self._sandbox.service_ended(name)
        if end is None:
            return
        self._run.journal.record("service.ended", name=name, status=end.status, memory=end.out_of_memory)
        self._ended += (_told(name, end),)
        self._run.update(services_ended=self._ended)
        self._run.tell(f"warning: the service {self._ended[-1]}; the run goes on without it")


def _told(name: str, end: ServiceEnd) -> str:
    why = ": it had no memory left" if end.out_of_memory else ""
    last = f"; the last line of its log: {end.log[-1][:_LINE]}" if end.log else ""
    return f"{name} ended with status {end.status}{why}{last}"


def _password() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def _postgres(image: str, config: ServiceConfig) -> tuple[ServiceSpec, Access]:
    env: Mapping[str, str] = {
        "POSTGRES_USER": "moat",
        "POSTGRES_PASSWORD": _password(),
        "POSTGRES_DB": "moat",
        # Loopback is trusted otherwise, and a wrong password would do.
        "POSTGRES_INITDB_ARGS": "--auth-host=scram-sha-256",
    } | dict(config.env)
    access = Access("postgresql", env["POSTGRES_USER"], env["POSTGRES_PASSWORD"], env["POSTGRES_DB"])
    # Over TCP: while the image sets the database up, it listens on its unix socket only.
    ready = ("pg_isready", "-q", "-h", ADDRESS, "-U", access.user)
    return ServiceSpec(name="postgres", image=image, env=env, ready=ready), access


def _mysql(image: str, config: ServiceConfig) -> tuple[ServiceSpec, Access]:
    env: Mapping[str, str] = {
        "MYSQL_ROOT_PASSWORD": _password(),
        "MYSQL_USER": "moat",
        "MYSQL_PASSWORD": _password(),
        "MYSQL_DATABASE": "moat",
    } | dict(config.env)
    access = Access("mysql", env["MYSQL_USER"], env["MYSQL_PASSWORD"], env["MYSQL_DATABASE"])
    admin = "$(command -v mysqladmin || command -v mariadb-admin)"
    ready = ("sh", "-c", f"{admin} ping --silent -h {ADDRESS} --protocol=tcp")
    return ServiceSpec(name="mysql", image=image, env=env, ready=ready), access


def _redis(image: str, config: ServiceConfig) -> tuple[ServiceSpec, Access]:
    """The password is in a file: as an argument every user of the machine could read it."""
    password = _password()
    place = "/etc/moat/redis.conf"
    settings = f"requirepass {password}\nbind {ADDRESS}\n"
    spec = ServiceSpec(
        name="redis",
        image=image,
        env={"REDISCLI_AUTH": password} | dict(config.env),
        command=("redis-server", place),
        files=((place, settings.encode()),),
        ready=("sh", "-c", 'test "$(redis-cli -h 127.0.0.1 ping)" = PONG'),
    )
    return spec, Access("redis", "default", password, "0")


_MAKERS = {"postgres": _postgres, "mysql": _mysql, "redis": _redis}
