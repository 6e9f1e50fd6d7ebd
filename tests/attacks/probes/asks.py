"""Runs inside a sandbox whose policy asks: makes requests that are held, and meanwhile tries to answer them.

argv: the host to ask about, a host with a rule, the path of the run's control socket on the host.
"""

import glob
import json
import os
import socket
import ssl
import stat
import sys
import threading

asked, known, control = sys.argv[1:4]
context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
answers = {}


def get(name, host, path, port=443):
    try:
        s = socket.create_connection(("127.0.0.1", 3128), 5)
        s.settimeout(40)
        s.sendall(("CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (host, port, host, port)).encode())
        s.recv(4096)
        s = context.wrap_socket(s, server_hostname=host)
        name_of_host = host if port == 443 else "%s:%d" % (host, port)
        s.sendall(
            ("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (path, name_of_host)).encode()
        )
        data = b""
        while chunk := s.recv(65536):
            data += chunk
        answers[name] = data.decode("latin-1")
    except OSError as error:
        answers[name] = repr(error)


def say(path, data):
    """What a unix socket answers to a client of the control protocol."""
    try:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(2)
        s.connect(path)
        s.sendall(data)
        return repr(s.recv(100))
    except OSError as error:
        return "no: %s" % error


def sockets():
    for place in ("/run", "/tmp", "/var", "/workspace", "/home", "/moat", "/dev", "/opt"):
        for directory, _, names in os.walk(place):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    if stat.S_ISSOCK(os.lstat(path).st_mode):
                        yield path
                except OSError:
                    pass


held = [threading.Thread(target=get, args=("held %d" % n, asked, "/held/%d" % n)) for n in range(30)]
for thread in held:
    thread.start()
get("known", known, "/ok/while-others-wait")
get("credential", known, "/not-in-the-rules")
hello = b'\x01\x00\x00\x00\x12{"role":"control"}'
body = json.dumps(
    {"pattern": asked + ":443", "allow": True, "scope": "run", "seconds": 0, "by": "agent"}
).encode()
answer = b"\x0a" + len(body).to_bytes(4, "big") + body
found = {path: say(path, hello + answer) for path in [control, *sockets()]}
with open("/proc/net/unix") as lines:
    found.update({name: say("\0" + name[1:], hello + answer) for name in
                  [line.split()[-1] for line in lines if line.split()[-1].startswith("@")]})  # fmt: skip
found.update(dict.fromkeys(glob.glob(os.path.dirname(control) + "/*"), "seen"))
print(
    json.dumps({"sockets": found, "meanwhile": {n: answers[n] for n in ("known", "credential")}}), flush=True
)
for thread in held:
    thread.join()
get("after", asked, "/after")
get("other port", asked, "/other-port", 8443)
print(json.dumps(answers), flush=True)
