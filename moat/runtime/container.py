"""The configuration of a container. No engine here; what lies in a container is `furniture`'s.

The boundary is the network namespace without a network. Everything else (no capability, no new
privileges, the two system call filters, the limits) is there so that nobody inside can change that.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from typing import Any

from moat.dataclass import dataclass
from moat.runtime import syscalls
from moat.runtime.sandbox import HOME, HOST_ADDRESS, HOST_NAME, USER, WORKSPACE, Mount, SandboxSpec

LABEL = "moat.run"  # on every container of a run; its value is the run's id
PLACE = "/run/moat"  # of Moat's own files in the container
EGRESS = f"{PLACE}/egress"  # the run's socket directory
PROGRAMS = f"{PLACE}/programs"  # what runs in it before the command, and beside it
# What the C library obeys, but not in a program with more rights than whoever starts it (its `unsecvars.h`).
_LIBRARY_PREFIXES = ("LD_", "GLIBC_", "MALLOC_")
_LIBRARY = (
    "GCONV_PATH",
    "GETCONF_DIR",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "NIS_PATH",
    "NLSPATH",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "TZDIR",
)
PYTHON = ["/usr/bin/python3", "-I", "-S", "-B", f"{PROGRAMS}/sandbox_init.py"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the agent is, in the container and in the eyes of the kernel."""

    uid: int
    gid: int


def configuration(
    spec: SandboxSpec,
    *,
    image: str,
    identity: Identity,
    binds: Iterable[Mount],
    proofs: Iterable[str] = (),
    memory: int,
    cpus: float = 0.0,
    network: str | None = None,
    userns_host: bool = False,
) -> dict[str, Any]:
    """The body of the engine's `create`. `memory`: bytes, `cpus`: a number; 0 where there is no limit.

    `proofs`: what the first program is to find mounted (`binds`).
    `network`: the container whose network namespace is joined (`container:<id>`); None: one of its own.
    """
    options = ["--size", f"{spec.tty.columns}x{spec.tty.rows}"] if spec.tty else []
    for port in spec.host_ports:
        options += ["--host-port", str(port)]
    for proof in proofs:
        options += ["--mounted", proof]
    options += ["--ingress"] if spec.ingress else []
    options += later(spec.env)
    for port in spec.captured:
        options += ["--capture", str(port)]
    who = {"HOME": HOME, "USER": USER, "LOGNAME": USER}
    return {
        "Image": image,
        "User": f"{identity.uid}:{identity.gid}",
        "Entrypoint": [*PYTHON, *options, "--"],
        "Cmd": list(spec.argv),
        "Env": [f"{name}={value}" for name, value in (who | dict(spec.env)).items() if not _is_library(name)],
        "WorkingDir": WORKSPACE,
        "Labels": {LABEL: spec.run_id},
        "Healthcheck": {"Test": ["NONE"]},  # a base image's own would run beside the agent
        "StopSignal": "SIGTERM",
        "Tty": spec.tty is not None,
        "OpenStdin": spec.tty is not None or spec.stdin,
        "StdinOnce": spec.tty is None,  # pipes: when ours closes, the command's stdin ends
        "HostConfig": _host(spec, binds, memory, cpus, network)
        | ({"UsernsMode": "host"} if userns_host else {}),
    }


def later(env: Mapping[str, str]) -> list[str]:
    """Options of the first program for variables of the command that the program itself must not have.

    They would load code of the workspace into it, before it has compared what is mounted.
    """
    return [word for name, value in env.items() if _is_library(name) for word in ("--env", f"{name}={value}")]


def _is_library(name: str) -> bool:
    return name.startswith(_LIBRARY_PREFIXES) or name in _LIBRARY


def _host(
    spec: SandboxSpec, binds: Iterable[Mount], memory: int, cpus: float, network: str | None
) -> dict[str, Any]:
    return ({"NetworkMode": network} if network else own_network()) | {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={syscalls.profile(syscalls.refused_bits())}"],
        "Ulimits": no_core(),
        "IpcMode": "private",
        "Init": True,
        "PidsLimit": spec.pids,
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": round(cpus * 1e9),
        "AutoRemove": True,  # by the engine, as soon as the command has ended
        "LogConfig": {"Type": "none"},  # the supervisor keeps the output; no second copy on the disk
        "Mounts": [
            {"Type": "bind", "Source": str(m.source), "Target": m.target, "ReadOnly": m.read_only}
            for m in binds
        ],
    }


def no_core() -> list[dict[str, Any]]:
    """No program of the host is told of a crash (`idmap.leave_no_core` says why).

    Where this process's hard limit is 0 the engine's may be too, and one in a container could not raise it
    (sudo's is, by default): its containers would not start.
    """
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 0 if most == 0 else 1
    return [{"Name": "core", "Soft": limit, "Hard": limit}]


def own_network() -> dict[str, Any]:
    """A network namespace with loopback and nothing else."""
    return {
        "NetworkMode": "none",
        "Dns": ["127.0.0.1"],  # the stub; never the host's resolver, whatever the engine's version
        "DnsSearch": ["."],
        "ExtraHosts": [f"{HOST_NAME}:{HOST_ADDRESS}"],
        "Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"},  # the listeners need no capability
    }
