"""Which Docker engine, and plain requests to it without a client library.

Probing and clearing up happen in commands that never start a container (`moat list`), or before it is
known that an engine exists.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from moat.errors import MoatError

_LINE = 8192  # bytes of a header field at most
_PLACES = ("/var/run/docker.sock", "/run/docker.sock")


class Answer(NamedTuple):
    status: int
    body: Any  # decoded JSON; None when there was none
    api_version: str  # the newest that the engine speaks: `1.41`


class EngineUnreachableError(MoatError):
    """No engine answers, or it is one that this machine's sockets cannot be shared with."""


def engine_socket(environ: Mapping[str, str] = os.environ) -> Path:
    """The socket of the engine that the `docker` command would use: DOCKER_HOST, context, usual place.

    Raises EngineUnreachableError for an engine that is reached over a network.
    """
    address = environ.get("DOCKER_HOST") or _context_address(environ)
    if not address:
        return next((Path(place) for place in _PLACES if os.path.exists(place)), Path(_PLACES[0]))
    if address.startswith("unix://"):
        return Path(address.removeprefix("unix://"))
    raise EngineUnreachableError(
        f"the Docker engine at {_without_password(address)} is remote, and a remote engine cannot share "
        "the run's socket",
        hint="unset DOCKER_HOST, or use `--runtime embedded`",
    )


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.hostname or ''}" if parts.username else address


def _context_address(environ: Mapping[str, str]) -> str:
    """The address in the chosen `docker context`; empty for the default one."""
    place = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = environ.get("DOCKER_CONTEXT") or _json_file(place / "config.json").get("currentContext")
    if not name or name == "default":
        return ""
    digest = hashlib.sha256(str(name).encode()).hexdigest()
    meta = _json_file(place / "contexts" / "meta" / digest / "meta.json")
    return str(meta.get("Endpoints", {}).get("docker", {}).get("Host", ""))


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def ask(method: str, target: str, *, path: Path | None = None, timeout: float = 10) -> Answer:
    """One request to the engine; blocks.

    Raises EngineUnreachableError when nothing answers.
    """
    from moat.runtime.engine_wire import MalformedError  # what only looks for the socket does without

    place = path or engine_socket()
    try:
        return _exchange(method, target, place, timeout)
    except PermissionError:
        raise EngineUnreachableError(
            f"no permission to use the Docker engine at {place}",
            hint="add yourself to the `docker` group and log in again, or use `--runtime embedded`",
        ) from None
    except (OSError, EOFError, MalformedError) as error:
        raise EngineUnreachableError(
            f"no Docker engine answers at {place} ({getattr(error, 'strerror', None) or error})",
            hint="start it (`systemctl start docker`), or use `--runtime embedded`",
        ) from None


def _exchange(method: str, target: str, place: Path, timeout: float) -> Answer:
    from moat.runtime import engine_wire

    reply = engine_wire.Reply(method)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(str(place))
        sock.sendall(engine_wire.request(method, target))
        with sock.makefile("rb") as stream:
            reply.begin(_head(stream))
            while not reply.complete:
                reply.take(stream.read1(engine_wire.PIECE))
    version = reply.headers.get(b"api-version", b"").decode("ascii", "replace")
    return Answer(reply.status, _decode(reply.body), version)


def _head(stream: BufferedReader) -> bytes:
    lines = []
    while (line := stream.readline(_LINE)).rstrip(b"\r\n"):
        lines.append(line)
    return b"".join([*lines, line])


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None


def containers(*, path: Path | None = None) -> list[dict[str, Any]]:
    """Every container, running or not; blocks."""
    found = ask("GET", "/containers/json?all=1", path=path).body
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def labelled(label: str, *, path: Path | None = None) -> list[dict[str, Any]]:
    """The containers, running or not, that carry `label` (`name` or `name=value`); blocks.

    Raises EngineUnreachableError also for an engine that does not know at the moment.
    """
    filters = quote(json.dumps({"label": [label]}))
    answer = ask("GET", f"/containers/json?all=1&filters={filters}", path=path)
    if answer.status != 200 or not isinstance(answer.body, list):
        raise _refused("to list containers", answer)
    return [item for item in answer.body if isinstance(item, dict)]


def remove(container: str, *, path: Path | None = None) -> None:
    """Kill and remove a container with its anonymous volumes; one that is gone is fine. Blocks.

    Raises EngineUnreachableError also for an engine that cannot do it now.
    """
    answer = ask("DELETE", f"/containers/{quote(container)}?force=1&v=1", path=path, timeout=60)
    if answer.status not in {204, 404, 409}:
        raise _refused("to remove a container", answer)


def _refused(what: str, answer: Answer) -> EngineUnreachableError:
    told = answer.body.get("message") if isinstance(answer.body, dict) else ""
    return EngineUnreachableError(f"the Docker engine refused {what}: {told or f'status {answer.status}'}")


def shares_mounts(path: Path) -> bool:
    """Whether the engine lives in this process's mount namespace, so that it sees what is mounted here.

    True where it cannot be told: the pid of a socket made by an init belongs to that init.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid = struct.unpack("3i", peer)[0]
            return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
        except OSError:
            return True
