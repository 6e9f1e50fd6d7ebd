"""Invariants 4, 5, 6 and 9: one authority, no detour through the host, deny opens no socket, no ambiguity.

How each was shown to fail: with `address.refuse` returning None the canary is reached through CONNECT;
with the refusal of `length-and-chunked` removed (http1.py) that request arrives at the origin. The other
malformed requests have a case each in tests/proxy/corpus/, and were taken out one by one there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from tests.attacks.canary import Canary
from tests.attacks.conftest import HOST, OTHER, World
from tests.attacks.test_no_credential import step

Attacker = Callable[[str, object], dict[str, Any]]


def hosts_of_the_host() -> list[str]:
    mine = [socket.gethostname(), "localhost", "ip6-localhost", "localhost.", "LOCALHOST"]
    return [
        *mine,
        "127.0.0.1", "127.1", "127.0.1", "127.8.8.8", "0.0.0.0", "0", "2130706433", "0x7f000001", "0x7f.0.0.1",
        "0177.0.0.1", "017700000001", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
        "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]", "[fd00::2]", "[fd00::1%25eth0]", "10.0.0.1",
        "172.17.0.1", "192.168.0.1", "192.0.2.2", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "user@127.0.0.1", "127.0.0.1%00.example.com",
        "\uff11\uff12\uff17.0.0.1".encode().decode("latin-1"), "\u2460\u2461\u2466.0.0.1".encode().decode("latin-1"),
    ]  # fmt: skip


def test_connect_never_reaches_the_host(attacker: Attacker, bird: Canary) -> None:
    get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    steps = []
    for host in hosts_of_the_host():
        target = f"{host}:{bird.tcp}"
        steps.append({"name": f"connect {host}", "connect": target, "tls": None, "send": get})
        steps.append(
            {"name": f"absolute {host}", "connect": None, "tls": None,
             "send": f"GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"}
        )  # fmt: skip
    answers = attacker("through_proxy", steps)
    assert len(answers) == len(steps)
    assert [name for name, answer in answers.items() if "canary" in answer] == []
    assert bird.knocks == []
    for name, answer in answers.items():
        line = answer.split("\r\n")[0]
        assert line.startswith(("HTTP/1.1 4", "HTTP/1.1 5")), (name, answer[:300])


def test_the_canary_is_reached_when_the_run_opens_its_port(world: World, runtime: str, bird: Canary) -> None:
    """The control, and `network.host`: exactly this port, by its name, and no other."""
    place = world.workspace(f"open-{runtime}")
    (place / "agent.yaml").write_text(f"dependencies: [python]\nnetwork:\n  host: [{bird.tcp}]\n")
    code = (
        "import socket\n"
        "def go(p):\n"
        "  try:\n"
        "    s=socket.create_connection(('moat-host',p),4); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); s.settimeout(4)\n"
        "    return s.recv(100)\n"
        "  except OSError as e: return e\n"
        f"print(go({bird.tcp})); print(go({world.origin.port}))"
    )
    done = world.command("run", str(place), "--runtime", runtime, "--", "python3", "-c", code)
    first, second = done.stdout.strip().split("\n")
    assert "canary" in first, done.stdout + done.stderr
    assert "HTTP" not in second


def evil_requests() -> dict[str, str]:
    head = f"Host: {HOST}\r\nX-Mark: evil\r\n"
    chunked = "Transfer-Encoding: chunked\r\n"
    return {
        "CL+TE": f"POST / HTTP/1.1\r\n{head}Content-Length: 5\r\n{chunked}\r\n0\r\n\r\n",
        "TE.TE": f"POST / HTTP/1.1\r\n{head}{chunked}Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "TE list": f"POST / HTTP/1.1\r\n{head}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "TE odd": f"POST / HTTP/1.1\r\n{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "TE space": f"POST / HTTP/1.1\r\n{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "bare LF": f"GET / HTTP/1.1\nHost: {HOST}\nX-Mark: evil\n\n",
        "one bare LF": f"GET / HTTP/1.1\r\n{head}X-A: b\nX-C: d\r\n\r\n",
        "bare CR": f"GET / HTTP/1.1\r\n{head}X-A: b\rX-C: d\r\n\r\n",
        "obs-fold": f"GET / HTTP/1.1\r\n{head}X-A: b\r\n c\r\n\r\n",
        "two CL": f"POST / HTTP/1.1\r\n{head}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "CL list": f"POST / HTTP/1.1\r\n{head}Content-Length: 5, 5\r\n\r\nhello",
        "CL sign": f"POST / HTTP/1.1\r\n{head}Content-Length: +5\r\n\r\nhello",
        "CL negative": f"POST / HTTP/1.1\r\n{head}Content-Length: -5\r\n\r\nhello",
        "CL huge": f"POST / HTTP/1.1\r\n{head}Content-Length: 99999999999999999999\r\n\r\nhello",
        "NUL": f"GET / HTTP/1.1\r\n{head}X-A: b\0c\r\n\r\n",
        "NUL in target": f"GET /\0 HTTP/1.1\r\n{head}\r\n",
        "space in target": f"GET /a b HTTP/1.1\r\n{head}\r\n",
        "no Host": "GET / HTTP/1.1\r\nX-Mark: evil\r\n\r\n",
        "two Host": f"GET / HTTP/1.1\r\n{head}Host: {HOST}\r\n\r\n",
        "space before colon": f"GET / HTTP/1.1\r\n{head}X-A : b\r\n\r\n",
        "empty name": f"GET / HTTP/1.1\r\n{head}: b\r\n\r\n",
        "HTTP/2 preface": f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nX-Mark: evil {head}",
        "HTTP/3.1": f"GET / HTTP/3.1\r\n{head}\r\n",
        "1 MB head": f"GET / HTTP/1.1\r\n{head}X-A: {'a' * (1 << 20)}\r\n\r\n",
        "10,000 fields": f"GET / HTTP/1.1\r\n{head}" + "X-A: b\r\n" * 10_000 + "\r\n",
        "TRACE": f"TRACE / HTTP/1.1\r\n{head}\r\n",
        "CONNECT inside": f"CONNECT {OTHER}:443 HTTP/1.1\r\n{head}\r\n",
    }


def test_an_ambiguous_request_never_passes(attacker: Attacker, world: World) -> None:
    before = len(world.origin.received)
    steps = [step(name, text) for name, text in evil_requests().items()]
    answers = attacker("through_proxy", steps)
    arrived = b"".join(bytes(log) for log in world.origin.received[before:])
    assert b"evil" not in arrived
    for name, answer in answers.items():
        assert not answer.startswith("HTTP/1.1 2"), (name, answer[:200])


def test_a_bad_chunk_breaks_the_exchange_off(attacker: Attacker, world: World) -> None:
    """The head has gone up by then; what matters is that nothing behind the bad chunk does."""
    head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
    tail = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    sizes = [
        "ffffffffffffffffff",
        "-1",
        "0x5",
        "5 ",
        "",
        "g",
        "5;" + "x" * 100_000,
        "5\n",
        "00000000000000000005",
    ]
    steps = [step(f"size {n}", f"{head}{size}\r\nhello\r\n0\r\n\r\n{tail}") for n, size in enumerate(sizes)]
    steps.append(step("no CRLF", f"{head}5\r\nhelloXX0\r\n\r\n{tail}"))
    before = len(world.origin.received)
    answers = attacker("through_proxy", steps)
    arrived = b"".join(bytes(log) for log in world.origin.received[before:])
    assert b"smuggled" not in arrived
    for name, answer in answers.items():
        assert not answer.startswith("HTTP/1.1 2"), (name, answer[:200])


def test_names_that_lead_to_the_host(world: World, runtime: str, bird: Canary) -> None:
    """`localhost` and the host's own name, asked for as a program would, with and without proxy variables."""
    code = (
        "import urllib.request as u,urllib.error as e,sys\n"
        "for name in sys.argv[2:]:\n"
        "  for handler in (u.ProxyHandler(), u.ProxyHandler({})):\n"
        "    try: print('REACHED' if b'canary' in u.build_opener(handler).open(f'http://{name}:{sys.argv[1]}/',timeout=5).read() else 'other')\n"
        "    except (e.URLError, OSError) as x: print('refused')\n"
    )
    names = [
        socket.gethostname(),
        "ip6-localhost",
        "host.docker.internal",
        "moat-host",
        "gateway.docker.internal",
    ]
    done = world.command(
        "run", str(world.workspace("ws")), "--runtime", runtime, "--",
        "python3", "-c", code, str(bird.tcp), *names,
    )  # fmt: skip
    assert done.stdout.split() == ["refused"] * (2 * len(names)), done.stdout + done.stderr
    assert bird.knocks == []
