"""What of a network a container has: the proxy's port, captured ports, the host's opened ports, names."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from tests.attacks.canary import canary, host_addresses
from tests.runtime.docker_kit import Listener, read_until, run, sandbox

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

TALK = """
import socket, sys
def talk(address, data):
    with socket.create_connection(address, timeout=10) as s:
        s.sendall(data); s.shutdown(socket.SHUT_WR)
        got = b''
        while piece := s.recv(65536): got += piece
        return got
def attempt(address, data=b'hello'):
    try: return talk(address, data).decode()
    except OSError as error: return type(error).__name__
"""


async def python(code: str, **options: object) -> str:
    return (await run("python3", "-c", TALK + code, **options)).text


async def test_the_explicit_proxy_is_the_run_s_socket() -> None:
    egress = Listener()
    code = "print(attempt(('127.0.0.1', 3128), b'CONNECT a.test:443 HTTP/1.1\\r\\n\\r\\nhello'))"
    assert await python(code, egress=egress) == "HTTP/1.1 200 OK\r\n\r\nhello\n"
    assert egress.heads == ["a.test:443"]


async def test_ports_80_and_443_of_any_name_are_captured() -> None:
    egress = Listener()
    code = "print(attempt(('one.test', 443)), attempt(('Two.test', 80)), attempt(('one.test', 443)))"
    assert await python(code, egress=egress) == "hello hello hello\n"
    assert egress.heads == ["one.test:443", "two.test:80", "one.test:443"]


async def test_other_ports_and_addresses_are_refused_cleanly() -> None:
    egress = Listener()
    code = (
        "print(attempt(('one.test', 22)), attempt(('192.0.2.1', 443)), attempt(('127.0.0.1', 443)), "
        "attempt(('127.99.1.1', 80)), attempt(('no.refused', 443)))"
    )
    assert await python(code, egress=egress) == (
        "ConnectionRefusedError OSError ConnectionResetError ConnectionResetError ConnectionResetError\n"
    )
    assert egress.heads == ["no.refused:443"]


async def test_opened_ports_of_the_host_have_a_name_and_no_other_has() -> None:
    egress = Listener()
    code = (
        "print(attempt(('moat-host', 5432)), attempt(('moat-host', 5433)), "
        "socket.gethostbyname('moat-host'), attempt(('127.0.0.1', 5432)))"
    )
    found = await python(code, egress=egress, host_ports=(5432,))
    assert found == "hello ConnectionRefusedError 127.63.0.1 ConnectionRefusedError\n"
    assert egress.heads == ["moat-host:5432"]


async def test_names_are_synthetic_and_ipv4_only() -> None:
    code = (
        "a = {i[4][0] for i in socket.getaddrinfo('example.com', 443)}\n"
        "b = socket.gethostbyname('other.example'); print(len(a), a.pop()[:4], b[:4], a != b)\n"
        "print(open('/etc/resolv.conf').read())"
    )
    lines = (await python(code)).splitlines()
    assert lines[0] == "1 127. 127. True"
    assert [line for line in lines if line.startswith("nameserver")] == ["nameserver 127.0.0.1"]


async def test_large_transfers_pass_both_ways_at_the_reader_s_pace() -> None:
    code = """
import hashlib, os, threading, time
data = os.urandom(1 << 20) * 12
s = socket.create_connection(('big.test', 443), timeout=30)
def send(): s.sendall(data); s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
time.sleep(0.5)
got = b''.join(iter(lambda: s.recv(1 << 16), b''))
print(got == data)
"""
    assert await python(code) == "True\n"


async def test_many_connections_at_once() -> None:
    code = """
import concurrent.futures as f
with f.ThreadPoolExecutor(40) as pool:
    print({r for r in pool.map(lambda n: attempt((f'h{n % 7}.test', 443)), range(200))})
"""
    assert await python(code) == "{'hello'}\n"


async def test_without_its_supervisor_a_sandbox_has_no_network_and_keeps_its_fence() -> None:
    """Neither by the proxy nor around it, and root there has none either.

    Seen failing with `NetworkMode: bridge`: the host is reached.
    """
    egress = Listener()
    code = (
        "print('ready', flush=True); input(); print(attempt(('127.0.0.1', 3128)), attempt(('a.test', 443)))"
    )
    with canary() as bird:
        direct = f"print({{attempt((host, {bird.tcp})) for host in {_of_the_host()}}})"
        async with sandbox("python3", "-c", TALK + code + "\n" + direct, egress=egress, stdin=True) as made:
            await read_until(made, b"ready\n")
            egress.close()
            assert egress.path
            egress.path.unlink(missing_ok=True)  # Python 3.13 has taken it along
            as_root = ["docker", "exec", "-u", "0:0", made.container, "python3", "-c", TALK + direct]
            done = await asyncio.to_thread(
                subprocess.run, as_root, capture_output=True, timeout=60, check=True
            )
            await made.write(b"\n")
            told = b"ConnectionResetError ConnectionResetError\n"
            assert await read_until(made, b"}\n") == told + b"{'OSError'}\n"
            assert done.stdout == b"{'OSError'}\n"
        assert bird.knocks == []


def _of_the_host() -> list[str]:
    """Addresses that the sandbox has not as well."""
    return [a for a in host_addresses() if not a.startswith("127.") and a != "::1"]


async def test_the_command_starts_after_the_listeners() -> None:
    """The first thing a command does may be a connection: ten fresh sandboxes, none refused."""
    code = TALK + "print(attempt(('127.0.0.1', 3128), b'x') + attempt(('first.test', 443), b'y'))"
    found = await asyncio.gather(*(run("python3", "-I", "-c", code) for _ in range(3)))
    assert [item.text for item in found] == ["xy\n"] * 3


async def test_killing_the_forwarder_costs_only_the_own_network() -> None:
    code = """
import os, signal, time
mine = os.getpid()
for name in os.listdir('/proc'):
    if name.isdigit() and int(name) not in (1, mine):
        os.kill(int(name), signal.SIGKILL)
time.sleep(0.3)
print(attempt(('127.0.0.1', 3128)), attempt(('one.test', 443)))
"""
    egress = Listener()
    assert await python(code, egress=egress) == "ConnectionRefusedError gaierror\n"
    assert egress.heads == []


async def test_the_command_has_no_child_and_no_stray_descriptor() -> None:
    code = """
import os
try: print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError: print('no child')
print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:4])
"""
    assert await python(code) == "no child\n[0, 1, 2, 3]\n"
