"""What Moat is measured between: a client in C, nginx as origin and as reference, a source of events."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
NAMES = "DNS:bench.test,DNS:*.bench.test"
BIG = 100 << 20  # bytes of the body for `down`


@dataclass(frozen=True)
class Peers:
    """Where they are, and the processes of the reference."""

    place: Path  # certificates, logs, the client
    origin: int
    reference: int
    forward: int
    events: int
    nginx: tuple[int, ...]

    @property
    def client(self) -> str:
        return str(self.place / "client")

    @property
    def ca(self) -> str:
        return str(self.place / "ca.pem")


@contextmanager
def peers(place: Path) -> Iterator[Peers]:
    """Build, start, and stop them. `place` is a directory of their own."""
    subprocess.run(["gcc", "-O2", "-o", place / "client", HERE / "client.c", "-lssl", "-lcrypto"], check=True)
    _certify(place)
    (place / "www").mkdir()
    (place / "www" / "json").write_text(f'{{"object": "bench", "text": "{"x" * 988}"}}\n')
    with open(place / "www" / "big", "wb") as file:
        file.writelines(os.urandom(1 << 20) for _ in range(BIG >> 20))
    for path in (place, *place.rglob("*")):
        path.chmod(0o755)  # nginx' workers are another user's
    ports = dict(zip(("origin", "reference", "forward", "events"), free_ports(4), strict=True))
    with ExitStack() as ends:
        ends.enter_context(_nginx(place, "origin", ports))
        workers = ends.enter_context(_nginx(place, "reference", ports))
        events = [sys.executable, "-m", "benchmarks.speed.peers", str(ports["events"]), str(place)]
        ends.enter_context(running(events, ports["events"]))
        yield Peers(place, nginx=workers, **ports)


@contextmanager
def running(command: list[str], port: int, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens on a port, until the block is left."""
    with open(log or os.devnull, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        for _ in range(300):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} has ended: {log.read_text() if log else command}")
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        else:
            raise SystemExit(f"nothing listens on {port}: {command}")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def _certify(place: Path) -> None:
    """A CA and a certificate, both of P-256 keys; the server sends both, as servers do."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    signed = [*new, "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", f"subjectAltName={NAMES}"]
    signed += ["-addext", "basicConstraints=critical,CA:FALSE"]
    for command, name in ((new, "ca"), (signed, "server")):
        files = ["-subj", f"/CN=Bench {name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run([*command, *files], cwd=place, check=True, capture_output=True)
    with open(place / "server.pem", "ab") as chain:
        chain.write((place / "ca.pem").read_bytes())


@contextmanager
def _nginx(place: Path, role: str, ports: dict[str, int]) -> Iterator[tuple[int, ...]]:
    """Yields the ids of its workers."""
    where, there = (f"127.0.0.1:{ports[name]}" for name in ("forward", "origin"))
    forward = f"server {{ listen {where} backlog=4096; proxy_pass {there}; }}"
    text = (HERE / "nginx.conf").read_text()
    text = text.replace("@http@", (HERE / f"{role}.conf").read_text())
    text = text.replace("@stream@", forward if role == "reference" else "")
    values = {"dir": place, "role": role, **ports}
    config = place / f"{role}.nginx"
    config.write_text(re.sub("@([a-z]+)@", lambda found: str(values[found[1]]), text))
    command = ["nginx", "-c", str(config), "-e", str(place / f"{role}-error.log")]
    with running(command, ports[role], place / f"{role}.out") as master:
        yield tuple(map(int, Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()))


# --- the source of events: `python -m benchmarks.speed.peers PORT DIRECTORY` ------------------------


def _serve(raw: socket.socket, context: ssl.SSLContext) -> None:
    """`GET /sse?n=60&ms=15`: events with the time at which each was written."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with context.wrap_socket(raw, server_side=True) as stream:
            while request := stream.recv(65536):
                count, pause = (int(found) for found in re.findall(rb"(?:n|ms)=(\d+)", request)[:2])
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
                stream.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
                for number in range(count):
                    time.sleep(pause / 1000)
                    event = b'event: delta\ndata: {"i":%d,"t":%d}\n\n' % (number, time.monotonic_ns())
                    stream.sendall(b"%x\r\n%b\r\n" % (len(event), event))
                stream.sendall(b"0\r\n\r\n")
    except OSError:
        pass


def main(port: int, place: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "server.pem", place / "server.key")
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    while True:
        threading.Thread(target=_serve, args=(listener.accept()[0], context), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
