"""Runs inside a sandbox: speaks raw bytes through the proxy and prints what came back, as JSON.

/workspace/plan.json (or argv[1]): JSON list of {"name", "connect": authority or null, "tls": server name or null, "send": latin-1 text,
"pause": seconds before it begins}. `connect` null sends to the proxy port itself.
"""

import json
import os
import socket
import ssl
import sys
import time

context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])


def read_head(s):
    data = b""
    while b"\r\n\r\n" not in data and len(data) < 65536:
        chunk = s.recv(4096)
        if not chunk:
            break
        data += chunk
    return data


def read_all(s):
    data = b""
    try:
        while len(data) < 1 << 20:
            chunk = s.recv(65536)
            if not chunk:
                break
            data += chunk
    except OSError:
        pass
    return data


def go(step):
    s = socket.create_connection(("127.0.0.1", 3128), 5)
    s.settimeout(4)
    answer = b""
    if step["connect"]:
        s.sendall(
            ("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (step["connect"], step["connect"])).encode("latin-1")
        )
        head = read_head(s)
        if b" 200 " not in head.split(b"\r\n")[0]:
            return head
        if step["tls"]:
            context.check_hostname = step.get("verify", True)
            s = context.wrap_socket(s, server_hostname=step["tls"])
    s.settimeout(4)
    try:
        s.sendall(step["send"].encode("latin-1"))
    except OSError:
        pass  # refused before all was sent; the answer is still there to be read
    answer = read_all(s)
    s.close()
    return answer


results = {}
for step in json.load(open(sys.argv[1] if sys.argv[1:] else "/workspace/plan.json")):
    time.sleep(step.get("pause", 0))
    try:
        results[step["name"]] = go(step).decode("latin-1")
    except (OSError, ssl.SSLError) as error:
        results[step["name"]] = "ERROR %s: %s" % (type(error).__name__, error)
print(json.dumps(results))
