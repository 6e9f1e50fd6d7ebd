"""What a container is made of: its configuration and the files put into it. No engine here.

The boundary is the network namespace without a network. Everything else (no capability, no new
privileges, the two system call filters, the limits) is there so that nobody inside can change that.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
import tarfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.runtime import syscalls, trust
from moat.runtime.sandbox import (
    CA_BUNDLE,
    HOME,
    HOST_ADDRESS,
    HOST_NAME,
    WORKSPACE,
    HomeFile,
    Mount,
    SandboxSpec,
)

LABEL = "moat.run"  # on every container of a run; its value is the run's id
PLACE = "/run/moat"  # of Moat's own files in the container
EGRESS = f"{PLACE}/egress"  # the run's socket directory
PYTHON = ["/usr/bin/python3", "-I", "-S", "-B", f"{PLACE}/sandbox_init.py"]
# Run in the container, next to each other, so that they import each other by plain name.
PROGRAMS = ("sandbox_init.py", "sandbox_forward.py", "dnsstub.py", "seccomp.py")
_USER = "agent"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the agent is, in the container and in the eyes of the kernel."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Accounts:
    """The image's own users and groups, and where its Java keeps trusted certificates."""

    passwd: bytes
    group: bytes
    java: tuple[str, ...] = ()


def configuration(
    spec: SandboxSpec,
    *,
    image: str,
    identity: Identity,
    binds: Iterable[Mount],
    memory: int,
    cpus: float = 0.0,
    network: str | None = None,
    userns_host: bool = False,
) -> dict[str, Any]:
    """The body of the engine's `create`. `memory`: bytes, `cpus`: a number; 0 where there is no limit.

    `network`: the container whose network namespace is joined (`container:<id>`); None: one of its own.
    """
    options = ["--size", f"{spec.tty.columns}x{spec.tty.rows}"] if spec.tty else []
    for port in spec.host_ports:
        options += ["--host-port", str(port)]
    options += ["--ingress"] if spec.ingress else []
    for port in spec.captured:
        options += ["--capture", str(port)]
    who = {"HOME": HOME, "USER": _USER, "LOGNAME": _USER}
    return {
        "Image": image,
        "User": f"{identity.uid}:{identity.gid}",
        "Entrypoint": [*PYTHON, *options, "--"],
        "Cmd": list(spec.argv),
        "Env": [f"{name}={value}" for name, value in (who | dict(spec.env)).items()],
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


def _host(
    spec: SandboxSpec, binds: Iterable[Mount], memory: int, cpus: float, network: str | None
) -> dict[str, Any]:
    return ({"NetworkMode": network} if network else own_network()) | {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={syscalls.profile(syscalls.refused_bits())}"],
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


def own_network() -> dict[str, Any]:
    """A network namespace with loopback and nothing else."""
    return {
        "NetworkMode": "none",
        "Dns": ["127.0.0.1"],  # the stub; never the host's resolver, whatever the engine's version
        "DnsSearch": ["."],
        "ExtraHosts": [f"{HOST_NAME}:{HOST_ADDRESS}"],
        "Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"},  # the listeners need no capability
    }


def archive(
    spec: SandboxSpec,
    identity: Identity,
    accounts: Accounts,
    programs: Mapping[str, bytes],
    truststore: bytes | None,
) -> bytes:
    """The tar that is unpacked at the container's root before it starts.

    Raises StartError for a home file that leaves HOME, or that a mount would carry out to the host.
    """
    files = _Files()
    files.add("etc/passwd", passwd(accounts.passwd, identity), 0o644)
    files.add("etc/group", group(accounts.group, identity), 0o644)
    files.add(CA_BUNDLE, spec.ca_bundle, 0o644)
    for path in accounts.java if truststore else ():
        files.add(path, truststore or b"", 0o644)
    for name, data in programs.items():
        files.add(f"{PLACE}/{name}", data, 0o644)
    files.directory(HOME, 0o700, identity)
    for directory in home_directories(spec):
        files.directory(f"{HOME}/{directory}", 0o700, identity)
    for file in spec.home_files:
        files.add(f"{HOME}/{file.path}", file.data, file.mode, identity)
    return files.done()


class _Files:
    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._archive = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)
        self._time = int(time.time())

    def add(self, path: str, data: bytes, mode: int, owner: Identity | None = None) -> None:
        info = self._info(path, mode, owner)
        info.size = len(data)
        self._archive.addfile(info, io.BytesIO(data))

    def directory(self, path: str, mode: int, owner: Identity) -> None:
        info = self._info(path, mode, owner)
        info.type = tarfile.DIRTYPE
        self._archive.addfile(info)

    def _info(self, path: str, mode: int, owner: Identity | None) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path.lstrip("/"))
        info.mode, info.mtime = mode, self._time
        if owner:
            info.uid, info.gid = owner.uid, owner.gid
        return info

    def done(self) -> bytes:
        self._archive.close()
        return self._buffer.getvalue()


def home_directories(spec: SandboxSpec) -> list[str]:
    """Directories below HOME that must exist and be the agent's: parents of home files and of mounts.

    The engine would make a mount's parents as root. The mount points themselves are left out: unpacking
    a directory there would change the mode of the host's.
    """
    targets = [posixpath.normpath(m.target) for m in spec.mounts]
    found: set[str] = set()
    for file in spec.home_files:
        path = _below_home(file)
        if any(f"{HOME}/{path}/".startswith(f"{target}/") for target in targets):
            raise StartError(f"home file {file.path} would be written through a mount, onto the host")
        found.update(_parents(path))
    for target in targets:
        if target.startswith(f"{HOME}/"):
            found.update(_parents(target.removeprefix(f"{HOME}/")))
    return sorted(found)


def _below_home(file: HomeFile) -> str:
    path = posixpath.normpath(file.path)
    if path.startswith(("/", "..")) or path == ".":
        raise StartError(f"home file {file.path} is not below HOME")
    return path


def _parents(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def passwd(lines: bytes, who: Identity) -> bytes:
    """The image's accounts with the agent first: programs look a uid up and take the first name they meet."""
    mine = f"{_USER}:x:{who.uid}:{who.gid}::{HOME}:/bin/bash\n".encode()
    return mine + _without(lines, who.uid)


def group(lines: bytes, who: Identity) -> bytes:
    return f"{_USER}:x:{who.gid}:\n".encode() + _without(lines, who.gid)


def _without(lines: bytes, number: int) -> bytes:
    """Without entries that have the agent's name or number."""
    kept = []
    for line in lines.splitlines(keepends=True):
        fields = line.split(b":")
        if fields[0] != _USER.encode() and fields[2:3] != [str(number).encode()]:
            kept.append(line)
    return b"".join(kept)


def programs() -> dict[str, bytes]:
    """The files that run in the container, by name."""
    here = Path(__file__).parent
    return {name: (here / name).read_bytes() for name in PROGRAMS}


def java_truststore(bundle: bytes) -> bytes:
    """The bundle as a PKCS #12 that Java reads as `cacerts`: no password, and marked as trusted.

    What cryptography cannot read is left out: bundles of hosts hold some very old roots.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import NoEncryption, pkcs12

    named = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about those roots
        for number, pem in enumerate(trust.certificates(bundle)):
            with contextlib.suppress(ValueError):
                certificate = x509.load_pem_x509_certificate(pem)
                named.append(pkcs12.PKCS12Certificate(certificate, f"moat-{number}".encode()))
    return pkcs12.serialize_java_truststore(named, NoEncryption())


def java_places(env: Iterable[str]) -> tuple[str, ...]:
    """Where an image's Java may keep its trusted certificates; `env` is the image's (`NAME=value`)."""
    values: Mapping[str, str] = dict(item.partition("=")[::2] for item in env)
    home = values.get("JAVA_HOME", "").rstrip("/")
    return ("/etc/ssl/certs/java/cacerts", *([f"{home}/lib/security/cacerts"] if home else []))
