"""The containers around a sandbox with services: one holds the network namespace, one for each service.

The namespace is made as for any sandbox (`NetworkMode: none`): loopback and nothing else, whoever is in it.
The sandbox and the services join it. Nobody in it has a capability that could change that; a service's
first process is root with just the rights that a database's image needs to become its own user.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moat.errors import StartError
from moat.runtime import container, syscalls
from moat.runtime.container import LABEL
from moat.runtime.sandbox import Progress, SandboxSpec, ServiceEnd, ServiceSpec

if TYPE_CHECKING:
    from moat.runtime.engine import Engine

_PATIENCE = 60.0  # seconds until a service must be ready
_PAUSE = 0.3  # seconds between two looks
_TAIL = 12  # lines of a service's log that an error shows
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")
_HOLDER_MEMORY = 32 << 20
_SHARED_MEMORY = 256 << 20
_NOBODY = "65534:65534"
_KILLED = 137


class Pod:
    """The containers of one run besides its sandbox. `network` is what the sandbox joins."""

    def __init__(
        self, engine: Engine, spec: SandboxSpec, *, limits_memory: bool, cpus: float, userns_host: bool
    ) -> None:
        """`cpus`: of each service, whose database runs programs for the agent; 0: all."""
        self._engine = engine
        self._spec = spec
        self._limits_memory = limits_memory
        self._cpus = cpus
        self._userns: dict[str, Any] = {"UsernsMode": "host"} if userns_host else {}
        self._containers: list[str] = []  # in the order in which they were made
        self._services: dict[str, str] = {}  # name -> container
        self._going = False

    @property
    def network(self) -> str:
        return f"container:{self._containers[0]}"

    async def make(self, image: str, progress: Progress) -> None:
        """Start everything; returns when it is ready. `image`: the sandbox's. Raises StartError."""
        images = [await self._image(service, progress) for service in self._spec.services]
        await self._start(f"moat-{self._spec.run_id}-net", self._holder(image))
        for service, found in zip(self._spec.services, images, strict=True):
            progress(f"starting {service.name}")
            files = _archive(service)
            config = self._service(service, found)
            name = f"moat-{self._spec.run_id}-{service.name}"
            self._services[service.name] = await self._start(name, config, files)
        for service in self._spec.services:
            if service.wait:
                progress(f"waiting until {service.name} is ready")
                await self._wait(service, self._services[service.name])

    async def ended(self, name: str) -> ServiceEnd | None:
        """Returns once a service has ended, however it did; None: with the pod."""
        from moat.runtime.engine_http import EngineError

        service = next(each for each in self._spec.services if each.name == name)
        made = self._services[name]
        try:
            status = await self._engine.wait(made)
            end = ServiceEnd(status, await self._engine.out_of_memory(made), await self._log(service, made))
        except EngineError:  # somebody removed it with force
            end = ServiceEnd(_KILLED)
        return None if self._going else end

    async def destroy(self) -> None:
        """Services first: the namespace goes with whoever is in it last."""
        self._going = True
        while self._containers:
            await self._engine.remove(self._containers[-1])
            self._containers.pop()

    async def _start(self, name: str, config: Mapping[str, Any], files: bytes = b"") -> str:
        made = await self._engine.create(name, config)
        self._containers.append(made)
        if files:
            await self._engine.put(made, files)
        await self._engine.start(made)
        return made

    async def _image(self, service: ServiceSpec, progress: Progress) -> str:
        from moat.runtime.engine_http import EngineError

        if found := await self._engine.image_id(service.image):
            return found
        progress(f"pulling {service.image}")
        try:
            async for line in self._engine.pull(service.image):
                progress(line)
        except EngineError as error:
            raise StartError(
                f"the image {service.image} of {service.name} is not here and cannot be pulled: {error}",
                hint=f"`docker pull {service.image}`, or name another image as services.{service.name}.image",
            ) from None
        found = await self._engine.image_id(service.image)
        if not found:
            raise StartError(f"the engine pulled {service.image} and does not have it")
        return found

    def _holder(self, image: str) -> dict[str, Any]:
        hosts = [f"{service.name}:127.0.0.1" for service in self._spec.services]
        network = container.own_network()
        network["ExtraHosts"] = [*network["ExtraHosts"], *hosts]
        host = self._common() | network | {"ReadonlyRootfs": True, "PidsLimit": 8}
        if self._limits_memory:
            host |= {"Memory": _HOLDER_MEMORY, "MemorySwap": _HOLDER_MEMORY}
        return {
            "Image": image,
            "User": _NOBODY,
            "Entrypoint": ["sleep", "infinity"],
            "Cmd": [],
            "Labels": {LABEL: self._spec.run_id},
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": host | {"LogConfig": {"Type": "none"}},
        }

    def _service(self, service: ServiceSpec, image: str) -> dict[str, Any]:
        host = self._common() | {
            "NetworkMode": self.network,
            "CapAdd": list(_CAPABILITIES),
            "PidsLimit": self._spec.pids,
            "ShmSize": _SHARED_MEMORY,
            "NanoCpus": round(self._cpus * 1e9),
            # Its last lines are shown when it does not get ready.
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
        }
        if self._limits_memory:
            host |= {"Memory": service.memory, "MemorySwap": service.memory}
        return {
            "Image": image,
            "Env": [f"{name}={value}" for name, value in service.env.items()],
            "Labels": {LABEL: self._spec.run_id},
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": host,
        } | ({"Cmd": list(service.command)} if service.command else {})

    def _common(self) -> dict[str, Any]:
        return self._userns | {
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", f"seccomp={syscalls.profile()}"],
            "Ulimits": container.no_core(),
            "IpcMode": "private",
            "Init": True,
        }

    async def _wait(self, service: ServiceSpec, name: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if await self._engine.run_inside(name, list(service.ready)) == 0:
                return
            if not await self._engine.running(name):
                raise await self._failure(service, name, "ended before it was ready")
            await asyncio.sleep(_PAUSE)
        raise await self._failure(service, name, f"was not ready within {_PATIENCE:.0f} s")

    async def _failure(self, service: ServiceSpec, name: str, what: str) -> StartError:
        shown = [f"  {line}" for line in await self._log(service, name)] or ["  it printed nothing"]
        return StartError(
            "\n".join([f"the service {service.name} ({service.image}) {what}", *shown]),
            hint=f"services.{service.name}.env and .image set it up; `wait: false` does not wait for it",
        )

    async def _log(self, service: ServiceSpec, container: str) -> tuple[str, ...]:
        """The last lines, without passwords."""
        lines = await self._engine.log(container, _TAIL)
        for password in [value for key, value in service.env.items() if "PASSWORD" in key]:
            lines = [line.replace(password, "…") for line in lines] if password else lines
        return tuple(lines)


def _archive(service: ServiceSpec) -> bytes:
    if not service.files:
        return b""
    import tarfile  # for services with files

    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w") as archive:
        for path, data in service.files:
            info = tarfile.TarInfo(path.lstrip("/"))
            info.size, info.mode, info.mtime = len(data), 0o644, int(time.time())
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
