"""What Moat puts into a container: its programs, the run's certificates, the agent's name, and HOME.

All but HOME is bound, read-only, from the run's directory. To unpack it in each new container would take the
engine a twentieth of a second: only what must be the agent's own is unpacked, and only where there is some.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import warnings
from collections.abc import Iterable
from pathlib import Path

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.runtime import trust
from moat.runtime.container import PROGRAMS, Identity
from moat.runtime.premises import Premises
from moat.runtime.sandbox import CA_BUNDLE, HOME, USER, HomeFile, Mount, SandboxSpec

# They run next to each other, so that they import each other by plain name.
FILES = ("sandbox_init.py", "sandbox_forward.py", "dnsstub.py", "seccomp.py")


def bound(spec: SandboxSpec, identity: Identity, premises: Premises, place: Path) -> list[Mount]:
    """Write what is bound to `place`, which is the run's alone; where each goes."""
    found = [_Bound(CA_BUNDLE, spec.ca_bundle)]
    found += [_Bound("/etc/passwd", passwd(premises.passwd, identity))]
    found += [_Bound("/etc/group", group(premises.group, identity))]
    if premises.java:
        store = java_truststore(spec.ca_bundle)
        found += [_Bound(path, store) for path in premises.java]
    place.mkdir(mode=0o700)
    inside = place / "programs"
    inside.mkdir()
    inside.chmod(0o755)
    for name, data in programs().items():
        _write(inside / name, data)
    for number, file in enumerate(found):
        _write(place / str(number), file.data)
    files = [Mount(place / str(number), file.target, read_only=True) for number, file in enumerate(found)]
    return [Mount(inside, PROGRAMS, read_only=True), *files]


@dataclass(frozen=True, slots=True)
class _Bound:
    target: str
    data: bytes


def _write(path: Path, data: bytes) -> None:
    """Readable by the agent, whoever that is: nobody else comes as far as here."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, 0o644)


def programs() -> dict[str, bytes]:
    """The files that run in the container, by name."""
    here = Path(__file__).parent
    return {name: (here / name).read_bytes() for name in FILES}


def home(spec: SandboxSpec, identity: Identity, premises: Premises) -> bytes:
    """The tar that is unpacked at the container's root before it starts; empty: the first program makes HOME.

    Raises StartError for a home file that leaves HOME, or that a mount would carry out to the host.
    """
    directories = home_directories(spec)
    within = any(_normal(mount).startswith(f"{HOME}/") for mount in spec.mounts)
    if premises.open_home and not spec.home_files and not within:
        return b""
    from moat.runtime.archive import Archive

    archive = Archive(identity)
    archive.directory(HOME)
    for directory in directories:
        archive.directory(f"{HOME}/{directory}")
    for file in spec.home_files:
        archive.add(f"{HOME}/{file.path}", file.data, file.mode)
    return archive.done()


def home_directories(spec: SandboxSpec) -> list[str]:
    """Directories below HOME that must exist and be the agent's: parents of home files and of mounts.

    The engine would make a mount's parents as root. The mount points themselves are left out: unpacking
    a directory there would change the mode of the host's.
    """
    targets = [_normal(mount) for mount in spec.mounts]
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


def _normal(mount: Mount) -> str:
    return posixpath.normpath(mount.target)


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
    mine = f"{USER}:x:{who.uid}:{who.gid}::{HOME}:/bin/bash\n".encode()
    return mine + _without(lines, who.uid)


def group(lines: bytes, who: Identity) -> bytes:
    return f"{USER}:x:{who.gid}:\n".encode() + _without(lines, who.gid)


def _without(lines: bytes, number: int) -> bytes:
    """Without entries that have the agent's name or number."""
    kept = []
    for line in lines.splitlines(keepends=True):
        fields = line.split(b":")
        if fields[0] != USER.encode() and fields[2:3] != [str(number).encode()]:
            kept.append(line)
    return b"".join(kept)


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
