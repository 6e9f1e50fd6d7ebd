"""The small protocol between a run and whatever makes its sandbox.

A runtime (`docker`, `embedded`) turns a `SandboxSpec` into a `Sandbox`. The contract inside every
sandbox is the same: user `agent` with HOME `/home/agent`, the workspace at `/workspace`, an explicit
proxy at `127.0.0.1:3128`, a DNS stub at `127.0.0.1:53` that gives every name a synthetic 127.64/10
address, ports 80 and 443 captured (and what else the run asks for), and no other network. What comes in
through them reaches the `Egress` of the run, and nothing else does.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from moat.config import HooksConfig
from moat.config.image import SERVICE_MEMORY
from moat.dataclass import dataclass
from moat.runtime.size import Size

USER = "agent"
HOME = "/home/agent"
WORKSPACE = "/workspace"
PROXY_PORT = 3128
PROXY_URL = f"http://127.0.0.1:{PROXY_PORT}"
HOST_NAME = "moat-host"  # the name under which `network.host` ports are reachable
HOST_ADDRESS = "127.63.0.1"  # its address inside the sandbox
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"  # merged: system roots + the run's CA
TERM = "xterm-256color"  # what a program in a sandbox is told of a terminal that takes more than text
AGENT_UID = 64123  # the sandbox's uid when Moat is run by root: never 0 inside or outside

Progress = Callable[[str], None]  # one line of what is being done, for a person


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of this machine that the sandbox sees."""

    source: Path  # a runtime follows no link on the way to it: see `of`
    target: str  # absolute path in the sandbox
    read_only: bool = False

    @classmethod
    def of(cls, source: Path, target: str, *, read_only: bool = False) -> Mount:
        """Of what `source` is now, whatever links lead there."""
        return cls(Path(os.path.realpath(source)), target, read_only)


@dataclass(frozen=True, slots=True)
class HomeFile:
    """A file placed in HOME before the command starts, owned by the agent."""

    path: str  # relative to HOME
    data: bytes
    mode: int = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A server in a container beside the sandbox, in the same network namespace."""

    name: str  # also a host name in the sandbox
    image: str
    env: Mapping[str, str]
    ready: tuple[str, ...]  # a command in its container that ends with 0 once it is ready
    command: tuple[str, ...] = ()  # in place of the image's own
    files: tuple[tuple[str, bytes], ...] = ()  # (absolute path, content), readable by all
    wait: bool = True
    memory: int = SERVICE_MEMORY  # bytes


@dataclass(frozen=True, slots=True)
class ServiceEnd:
    """How a service ended while its run went on."""

    status: int  # 128+N when signal N ended it
    out_of_memory: bool = False
    log: tuple[str, ...] = ()  # its last lines, without its passwords


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    run_id: str
    argv: tuple[str, ...]
    workspace: Path
    ca_bundle: bytes  # PEM, merged
    directory: Path  # short private directory of this run for sockets, 0700; the runtime may use it
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    mounts: tuple[Mount, ...] = ()  # besides the workspace
    home_files: tuple[HomeFile, ...] = ()
    host_ports: tuple[int, ...] = ()  # `network.host`: reachable as moat-host:<port>
    ingress: bool = False  # `dial` will be used: the run has endpoints
    captured: tuple[int, ...] = ()  # ports that are captured besides 80 and 443
    tty: Size | None = None  # None: plain pipes, stdout and stderr apart
    stdin: bool = False  # plain runs: forward stdin (else /dev/null)
    dependencies: tuple[str, ...] = ()  # docker: `node@22`, `claude-code`…
    base_image: str | None = None  # docker only
    hooks: HooksConfig = field(default_factory=HooksConfig)  # docker only: those of the image
    rebuild: bool = False
    services: tuple[ServiceSpec, ...] = ()  # docker only
    memory: int = 0  # bytes; 0: the runtime's default
    cpus: float = 0.0  # 0: all
    pids: int = 1024


@dataclass(frozen=True, slots=True)
class Output:
    """What came at one moment; at a terminal all of it is `stdout`."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class Egress(Protocol):
    """The run's side of the egress channel; made by the run, driven by the runtime."""

    async def serve_unix(self, path: Path, uid: int) -> None:
        """Accept proxy connections on a unix socket at `path`, connectable by `uid` only."""
        ...

    async def serve_sockets(self, sockets: EgressSockets) -> None:
        """Accept on listeners that were made inside the sandbox's network namespace."""
        ...


@dataclass(frozen=True, slots=True)
class EgressSockets:
    """File descriptors of sockets bound inside the sandbox; ownership passes to the Egress."""

    proxy: int  # 127.0.0.1:3128, listening
    http: int  # 0.0.0.0:80, listening: captured
    https: int  # 0.0.0.0:443, listening: captured
    dns: int  # 127.0.0.1:53, UDP
    host_ports: tuple[tuple[int, int], ...] = ()  # (port, listening fd on HOST_ADDRESS:port)
    captured: tuple[int, ...] = ()  # 0.0.0.0, listening, one for each of `SandboxSpec.captured`


class Execution(Protocol):
    """A further command in a sandbox that runs; all of it as in `Sandbox`, for this command."""

    async def read(self) -> Output | None: ...

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def resize(self, size: Size) -> None: ...

    async def signal(self, number: int) -> None: ...

    async def wait(self) -> int: ...

    async def close(self) -> None:
        """Kill the command, if it still runs, and release everything."""
        ...


class Sandbox(Protocol):
    """One sandbox that exists and has not started its command, or has."""

    async def start(self) -> None:
        """Start the command. Output is complete from its first byte on."""
        ...

    async def read(self) -> Output | None:
        """The next output, or None when the command's output has ended."""
        ...

    async def write(self, data: bytes) -> None:
        """To the command's stdin or terminal; waits when the command does not read."""
        ...

    async def close_stdin(self) -> None: ...

    async def resize(self, size: Size) -> None: ...

    async def signal(self, number: int) -> None:
        """Send a signal to the command (its foreground process group on a terminal)."""
        ...

    async def dial(self, port: int) -> socket.socket:
        """A stream to the server that listens on `port` of the sandbox's loopback; the caller owns it.

        Non-blocking; its file description is never one that the sandbox holds as well. Raises OSError
        (ConnectionRefusedError when nothing listens, TimeoutError). Only with `SandboxSpec.ingress`.
        """
        ...

    async def execute(
        self, argv: tuple[str, ...], *, tty: Size | None, stdin: bool, term: str = TERM
    ) -> Execution:
        """Start another command beside the run's own, as the same user in the same fence.

        term: what a command with a terminal finds as TERM.

        Raises StartError when nothing runs, or when that is not possible now.
        """
        ...

    async def service_ended(self, name: str) -> ServiceEnd | None:
        """Returns once a service of `SandboxSpec.services` has ended; None: it went with the sandbox."""
        ...

    async def wait(self) -> int:
        """The command's exit status, 128+N when signal N ended it. May be called many times."""
        ...

    async def first_pid(self) -> int:
        """The number that the host knows the sandbox's first process by; 0 while nothing runs."""
        ...

    async def pause(self) -> None:
        """Hold every process of it still until `resume`. Raises MoatError when that is not possible."""
        ...

    async def resume(self) -> None:
        """Let go on what `pause` stopped. Nothing happens when nothing is paused."""
        ...

    async def destroy(self) -> None:
        """Kill what runs and remove every trace. Idempotent; never raises for what is already gone."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a runtime can be used here; `reason` and `hint` are for `moat doctor` and errors."""

    usable: bool
    reason: str
    hint: str = ""


class Runtime(Protocol):
    name: str

    async def probe(self) -> Probe:
        """Try it for real: reach the engine, start a namespace."""
        ...

    def get_ready(self, run_id: str, *, memory: int, pids: int, cpus: float) -> None:
        """Begin what takes a while and needs no spec; `aclose` ends it when no `create` followed.

        The limits are those of the spec.
        """
        ...

    async def aclose(self) -> None: ...

    async def create(self, spec: SandboxSpec, egress: Egress, progress: Progress) -> Sandbox:
        """Make the sandbox with its egress in place. Raises StartError with a hint."""
        ...

    async def reap(self, run_id: str) -> None:
        """Remove whatever a run whose supervisor was killed left behind. Idempotent."""
        ...
