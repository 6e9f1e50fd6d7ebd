"""The speed of the proxy beside nginx, row by row, as the table of benchmarks/README.md.

    python -m benchmarks.speed.table [--rounds 5] [--seconds 2] [--tests keep1,down] [--tree NAME=DIR]...
                                     [--python NAME=INTERPRETER]... [--mitmproxy MITMDUMP] [--awake]

Moat, nginx and no proxy at all take turns in every test of every round; ratios are formed within a round. CPU
is what the kernel has scheduled, of all threads. Every response is checked by the client. Needs nginx with
its stream module, gcc and the headers of OpenSSL.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.speed.awake import awake
from benchmarks.speed.peers import Peers, free_ports, peers, running

AUTH = base64.b64encode(b"run1:token").decode()
SEEN = {"direct": "placeholder-token", "nginx": "real-secret-token", "mitmproxy": "real-secret-token"}
MASKED = "Bearer *****************"  # an echo of the credential, as Moat lets it through
HOSTS = 24  # of `mint`
EVENTS, PAUSE = 60, 15  # of `sse`; milliseconds
IDLE = 500
LOADS = {
    "keep1": ("-m", "keep", "-c", "1", "-u", "/json"),
    "keep16v": ("-m", "keep", "-c", "16", "-u", "/jsonv"),
    "post": ("-m", "keep", "-c", "4", "-u", "/sink", "-b", "200000"),
    "new16": ("-m", "new", "-c", "16"),
    "down": ("-m", "down", "-u", "/big", "-n", "3"),
    "opaque": ("-m", "down", "-u", "/big", "-n", "3"),
}
TESTS = (*LOADS, "sse", "mint", "idle")


Samples = dict[tuple[str, str, str], list[float]]  # by target, test and metric, one for each round


@dataclass(frozen=True)
class Row:
    """A line of the table, and what has to hold."""

    title: str
    test: str
    metric: str
    goal: float
    against: str = ""  # a target: the ratio to it; `direct`: the difference to it
    more: bool = False  # at least, not at most
    unit: str = ""


ROWS = (
    Row("keep16v rate", "keep16v", "rate", 0.45, "nginx", more=True),
    Row("keep16v rate over mitmproxy", "keep16v", "rate", 25, "mitmproxy", more=True),
    Row("keep16v CPU", "keep16v", "cpu", 3.0, "nginx"),
    Row("keep1 added p50 over direct", "keep1", "p50", 130, "direct", unit=" µs"),
    Row("post CPU", "post", "cpu", 1.4, "nginx"),
    Row("new16 CPU", "new16", "cpu", 1.6, "nginx"),
    Row("mint p50", "mint", "p50", 8_000, unit=" µs"),
    Row("down CPU per GB", "down", "cpu", 1.3, "nginx"),
    Row("down rate", "down", "rate", 0.85, "nginx", more=True),
    Row("opaque tunnel CPU per GB", "opaque", "cpu", 1.1, "nginx"),
    Row("sse p50 over direct", "sse", "p50", 250, "direct", unit=" µs"),
    Row("idle connection", "idle", "each", 30, unit=" kB"),
    Row("at start", "idle", "start", 40, unit=" MB"),
)


@dataclass(frozen=True)
class Target:
    """Whom requests go through."""

    name: str
    peers: Peers
    port: int = 0  # of the proxy; 0: none
    ca: str = ""
    pids: tuple[int, ...] = ()

    def address(self, test: str) -> int:
        """Port of the server that a request names."""
        if self.name == "nginx":
            return self.peers.forward if test == "opaque" else self.peers.reference
        return self.peers.events if test == "sse" else self.peers.origin

    def load(self, test: str, *arguments: str) -> dict[str, float]:
        command = [
            self.peers.client,
            *arguments,
            "-w",
            "0",
            "-h",
            "bench.test",
            "-p",
            str(self.address(test)),
        ]
        command += ["-C", self.peers.ca if test == "opaque" else self.ca or self.peers.ca]
        if self.port:
            command += ["-P", str(self.port), "-a", AUTH]
        if test not in {"down", "opaque", "post"}:
            command += ["-W", SEEN.get(self.name, MASKED)]
        env = os.environ | ({"CONNECT_HOST": "moat-host"} if test == "opaque" else {})
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
        found: dict[str, float] = json.loads(result.stdout or "{}")
        if found.get("errors", 1):
            raise SystemExit(f"{test} by way of {self.name}: {found.get('err', result.stderr)}")
        return found

    def cpu(self) -> float:
        """Microseconds so far."""
        tasks = [task for pid in self.pids for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000

    def tls(self, host: str, port: int) -> ssl.SSLSocket:
        """A connection of our own through the target."""
        sock = socket.create_connection(("127.0.0.1", self.port or port), 20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.port:
            where = f"{host}:{port}"
            lines = (f"CONNECT {where} HTTP/1.1", f"Host: {where}", f"Proxy-Authorization: Basic {AUTH}")
            sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            if b" 200 " not in sock.recv(4096):
                raise SystemExit(f"{self.name} refuses to connect to {where}")
        return _trusting(self.ca or self.peers.ca).wrap_socket(sock, server_hostname=host)


@cache
def _trusting(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


# --- the tests ---------------------------------------------------------------------------------------


def measure(target: Target, test: str, seconds: float) -> dict[str, float]:
    """Rate, CPU for each unit (µs; ms for each GB) and median latency (µs)."""
    if test == "sse":
        return {"p50": events(target)}
    length = () if "-n" in LOADS[test] else ("-t", str(seconds))
    before = target.cpu()
    found = target.load(test, *LOADS[test], *length)
    spent = target.cpu() - before
    if test in {"down", "opaque"}:
        return {"cpu": spent * 1e6 / found["bytes"], "rate": found["bytes"] / 1e6 / found["seconds"]}
    units = found["conns"] if test == "new16" else found["requests"]
    return {"cpu": spent / units, "rate": found["rps"], "p50": found["p50_us"]}


def events(target: Target) -> float:
    """From the source's write to our read, the median in µs."""
    late: list[float] = []
    with target.tls("bench.test", target.address("sse")) as stream:
        where = f"bench.test:{target.address('sse')}"
        stream.sendall(f"GET /sse?n={EVENTS}&ms={PAUSE} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        text = b""
        while len(late) < EVENTS and (data := stream.recv(65536)):
            now, text = time.monotonic_ns(), text + data
            *whole, text = text.split(b"}\n\n")
            late += [(now - int(re.findall(rb'"t":(\d+)', event)[0])) / 1000 for event in whole]
    return statistics.median(late)


def mint(target: Target) -> float:
    """The first connection and request to hosts that nobody has asked for yet, the median in µs."""
    took = []
    for number in range(HOSTS):
        host, began = f"m{number}.bench.test", time.monotonic_ns()
        with target.tls(host, target.peers.origin) as stream:
            stream.sendall(f"GET /json HTTP/1.1\r\nHost: {host}:{target.peers.origin}\r\n\r\n".encode())
            assert stream.recv(65536).startswith(b"HTTP/1.1 200")
        took.append((time.monotonic_ns() - began) / 1000)
    return statistics.median(took)


def idle(target: Target) -> dict[str, float]:
    """Memory (PSS) at start in MB, and of each idle connection in kB."""

    def held() -> int:
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in target.pids]
        return sum(int(re.findall(r"^Pss: +(\d+)", text, re.MULTILINE)[0]) for text in texts)

    before = held()
    command = [target.peers.client, "-m", "idle", "-c", str(IDLE), "-t", "60", "-h", "bench.test"]
    command += ["-p", str(target.peers.origin), "-C", target.ca, "-P", str(target.port), "-a", AUTH]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout
        assert client.stdin
        assert client.stdout.readline().startswith(b"READY")
        time.sleep(0.5)
        after = held()
        client.stdin.close()
    return {"start": before / 1024, "each": (after - before) / IDLE}


# --- turns -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ours:
    """A tree of Moat, and the Python that runs its proxy."""

    tree: Path = Path(__file__).resolve().parents[2]
    python: str = sys.executable


def ours(options: argparse.Namespace) -> dict[str, Ours]:
    """Moat as it is here and by this Python, and what else was asked for, by name."""
    trees = (each.partition("=") for each in options.tree)
    pythons = (each.partition("=") for each in options.python)
    return {
        "Moat": Ours(),
        **{name: Ours(tree=Path(place).resolve()) for name, _, place in trees},
        **{name: Ours(python=python) for name, _, python in pythons},
    }


@contextmanager
def moat(name: str, which: Ours, made: Peers) -> Iterator[Target]:
    """A proxy of ours, with a new CA."""
    (port,) = free_ports(1)
    ca, record = made.place / f"{name}-{port}.pem", made.place / f"{name}.jsonl"
    command = [which.python, "benchmarks/proxy.py", "--port", str(port), "--ca-out", str(ca)]
    command += ["--ports", str(made.origin), str(made.events), "--host-ports", str(made.origin)]
    command += ["--upstream-ca", made.ca, "--log", str(record)]
    with running(
        ["env", f"--chdir={which.tree}", f"PYTHONPATH={which.tree}", *command],
        port,
        made.place / f"{name}.log",
    ) as process:
        yield Target(name, made, port, str(ca), (process.pid,))


@contextmanager
def mitmproxy(command: str, made: Peers) -> Iterator[Target]:
    """`command` is mitmdump; it takes part in keep16v only."""
    (port,) = free_ports(1)
    home, record = made.place / "mitmproxy", made.place / "mitmproxy.jsonl"
    settings = (
        f"confdir={home}",
        f"ssl_verify_upstream_trusted_ca={made.ca}",
        "connection_strategy=lazy",  # or the name would be looked up
    )
    line = ["env", f"MITM_RECORD={record}", command, "-q", "--listen-host", "127.0.0.1", "-p", str(port)]
    line += ["-s", str(Path(__file__).with_name("mitm_addon.py"))]
    line += [each for setting in settings for each in ("--set", setting)]
    with running(line, port, made.place / "mitmproxy.log") as process:
        yield Target("mitmproxy", made, port, str(home / "mitmproxy-ca-cert.pem"), (process.pid,))


def starts(options: argparse.Namespace, proxies: dict[str, Ours], made: Peers, samples: Samples) -> None:
    """What a proxy is started for: its memory, and hosts that it has never seen."""
    wanted = ["idle"] * ("idle" in options.tests) + ["mint"] * (options.starts * ("mint" in options.tests))
    for test in wanted:
        for name, which in proxies.items():
            with moat(name, which, made) as target:
                target.load("new16", "-m", "new", "-c", "1", "-n", "3")
                found = idle(target) if test == "idle" else {"p50": mint(target)}
            for metric, value in found.items():
                samples[name, test, metric].append(value)


def rounds(options: argparse.Namespace, proxies: dict[str, Ours], made: Peers, samples: Samples) -> None:
    """What all do in turns."""
    with ExitStack() as ends:
        targets = [Target("direct", made), Target("nginx", made, pids=made.nginx)]
        targets += [ends.enter_context(moat(name, which, made)) for name, which in proxies.items()]
        if options.mitmproxy:
            targets.append(ends.enter_context(mitmproxy(options.mitmproxy, made)))
        for number in range(options.rounds):
            targets = [*targets[1:], targets[0]]
            for test in options.tests:
                for target in targets:
                    if not takes_part(target.name, test):
                        continue
                    for metric, value in measure(target, test, options.seconds).items():
                        samples[target.name, test, metric].append(value)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)


def takes_part(target: str, test: str) -> bool:
    """`mint` and `idle` are `starts`'s."""
    if target == "mitmproxy":
        return test == "keep16v"
    return test not in {"mint", "idle"} and (test, target) != ("opaque", "direct")


def row(each: Row, samples: Samples, name: str) -> str | None:
    """`| test | Moat | against | ratio or difference | goal | |`; None for what was not measured."""
    ours = samples[name, each.test, each.metric]
    if not ours:
        return None
    theirs = samples[each.against, each.test, each.metric]
    if each.against and not theirs:
        return None
    how: Callable[[float, float], float] = (
        (lambda a, b: a - b) if each.against == "direct" else (lambda a, b: a / b)
    )
    values = [how(a, b) for a, b in zip(ours, theirs, strict=True)] if theirs else ours
    median = statistics.median(values)
    holds = median >= each.goal if each.more else median <= each.goal
    digits = 0 if each.unit == " µs" else 1 if each.unit else 2
    spread = f"{median:,.{digits}f}{each.unit} [{min(values):,.{digits}f} to {max(values):,.{digits}f}]"
    shown = [f"{statistics.median(each):,.0f}" if each else "" for each in (ours, theirs)]
    goal = f"{'≥' if each.more else '≤'} {each.goal:,g}{each.unit}"
    return (
        f"| {each.title} | {shown[0]} | {shown[1]} | {spread} | {goal} | {'holds' if holds else 'missed'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="of proxies, for `mint`")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one sample")
    parser.add_argument("--tests", type=lambda text: text.split(","), default=TESTS)
    parser.add_argument(
        "--tree", action="append", default=[], metavar="NAME=DIRECTORY", help="also the proxy of another tree"
    )
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=INTERPRETER", help="also this tree by another"
    )
    parser.add_argument("--awake", action="store_true", help="no processor sleeps meanwhile (awake.py)")
    parser.add_argument(
        "--mitmproxy", metavar="MITMDUMP", help="its rate too: `pip install mitmproxy` elsewhere"
    )
    options = parser.parse_args()
    proxies = ours(options)
    samples: Samples = defaultdict(list)
    with (
        awake() if options.awake else nullcontext(),
        tempfile.TemporaryDirectory(prefix="moat-speed-") as place,
        peers(Path(place)) as made,
    ):
        print(f"load before: {os.getloadavg()[0]:.1f}")
        starts(options, proxies, made, samples)
        rounds(options, proxies, made, samples)
    print(f"load after: {os.getloadavg()[0]:.1f}")
    for name in proxies:
        print(f"\n| test | {name} | against | ratio or difference | goal | |\n|---|---|---|---|---|---|")
        print("\n".join(text for each in ROWS if (text := row(each, samples, name))))


if __name__ == "__main__":
    main()
