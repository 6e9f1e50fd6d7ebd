"""Runs in a sandbox that has endpoints: what can be done with the way in? Prints JSON.

argv: the gateway's port, an open port of the host, a closed one.
"""

import glob
import json
import os
import signal
import socket
import stat
import sys

gateway, open_port, closed_port = (int(word) for word in sys.argv[1:])
found = {}


def attempt(name, action):
    try:
        found[name] = action()
    except (OSError, EOFError) as error:
        found[name] = type(error).__name__


def tcp(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect((address, port))
        sock.sendall(b"GET / HTTP/1.0\r\nHost: web.beta.localhost\r\n\r\n")
        return sock.recv(200).decode("latin-1") or "closed"


def proxied(name, port):
    with socket.create_connection(("127.0.0.1", 3128), timeout=5) as sock:
        target = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        sock.recv(4096)
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        return sock.recv(4096).decode("latin-1") or "closed"


# the host's ports, by every name that could mean the host
for port, what in ((gateway, "gateway"), (closed_port, "closed"), (open_port, "open")):
    names = ["moat-host", "localhost", "127.0.0.1", "127.63.0.1", "::1", "web.beta.localhost", "0.0.0.0"]
    for name in names:
        attempt(f"{what} proxied {name}", lambda name=name, port=port: proxied(name, port))
    for address in ("127.0.0.1", "127.63.0.1", "::1"):
        attempt(f"{what} direct {address}", lambda address=address, port=port: tcp(address, port))
    try:
        address = socket.getaddrinfo("moat-host", port, socket.AF_INET)[0][4][0]
    except OSError:
        address = "127.63.0.1"
    attempt(f"{what} direct moat-host", lambda address=address, port=port: tcp(address, port))

# every unix socket that can be seen
sockets = []
for root, _, names in os.walk("/run"):
    for name in names:
        path = os.path.join(root, name)
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                sockets.append(path)
        except OSError:
            continue
found["sockets"] = sorted(sockets)

# the directory of the way in, if there is one: plant, replace, remove
place = "/run/moat/egress"
if os.path.isdir(place):
    attempt("symlink", lambda: os.symlink("/var/run/docker.sock", place + "/in-1.sock") or "done")
    attempt("unlink", lambda: os.unlink(place + "/dial.sock") or "done")
    attempt("rename", lambda: os.rename(place + "/dial.sock", place + "/x") or "done")
    attempt("bind", lambda: socket.socket(socket.AF_UNIX).bind(place + "/in-2.sock") or "done")
    attempt("remount", lambda: os.open(place + "/new", os.O_CREAT | os.O_WRONLY) and "done")

    def obey():
        """Take the forwarder's place at the socket where the run gives orders."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(3)
        sock.connect(place + "/dial.sock")
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return repr(sock.recv(100))

    attempt("obey", obey)


def others():
    """Processes that are not ours to see: the maker of sockets must not be among them."""
    seen = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with open(path, "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace")
        if "namespace" in command or "supervisor" in command:
            seen.append(command)
    return seen


attempt("others", others)
if "--kill" in os.environ.get("ATTACK", ""):
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        pid = int(path.split("/")[2])
        with open(path, "rb") as file:
            if b"sandbox_init" in file.read() and pid != 1:
                os.kill(pid, signal.SIGKILL)
print(json.dumps(found), flush=True)
