"""What `moat demo` runs inside the sandbox: look at everything, send requests, try every way out.

Stands alone (standard library, any Python from 3.9 on): it is copied into the workspace and run by the
sandbox's interpreter. Prints one JSON object. It judges nothing; `moat demo` does, from outside.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
import zlib
from collections.abc import Callable
from typing import Any

Value = dict[str, Any]  # JSON

PROXY = ("127.0.0.1", 3128)
LIMIT = 1 << 20  # bytes of one file that are worth looking at
PLACES = ("~", "/workspace", "/run", "/tmp", "/etc", "/var/tmp")  # noqa: S108 - looked at, not used


def look() -> Value:
    """Every environment, command line and readable file, as one compressed heap of bytes."""
    heap = bytearray(json.dumps(dict(os.environ)).encode())
    files = [
        f"/proc/{pid}/{part}"
        for pid in os.listdir("/proc")
        if pid.isdigit()
        for part in ("environ", "cmdline")
    ]
    for place in PLACES:
        for directory, _, names in os.walk(os.path.expanduser(place)):
            files += [os.path.join(directory, name) for name in names]
    seen = 0
    for path in files:
        with contextlib.suppress(OSError):
            # Programs are the machine's own and cannot hold what was made up a moment ago.
            if not os.path.realpath(path).startswith("/usr/") and (
                path.startswith("/proc/") or os.path.isfile(path)
            ):
                with open(path, "rb") as file:
                    heap += path.encode(errors="replace") + b"\n" + file.read(LIMIT) + b"\n"
                seen += 1
    return {"files": seen, "heap": base64.b64encode(zlib.compress(bytes(heap), 1)).decode()}


def held(source: Value) -> str:
    """A credential as a program in here would find it."""
    if "variable" in source:
        return os.environ[source["variable"]]
    with open(os.path.expanduser(source["file"])) as file:
        value = json.load(file)
    for key in source["keys"]:
        value = value[key]
    return str(value)


def ask(host: str, port: int, headers: dict[str, str], *, via_proxy: bool, body: str | None = None) -> Value:
    """One HTTPS request, through the proxy as clients do or straight to the name."""
    context = ssl.create_default_context()
    if via_proxy:
        connection = http.client.HTTPSConnection(*PROXY, timeout=5, context=context)
        connection.set_tunnel(host, port)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
    with contextlib.closing(connection):
        connection.request("POST" if body else "GET", "/v1/demo", body=body, headers=headers)
        answer = connection.getresponse()
        return {
            "status": answer.status,
            "headers": {name.lower(): value for name, value in answer.getheaders()},
            "body": answer.read().decode(errors="replace"),
        }


def plain(url: str) -> Value:
    """One request in absolute form, as clients send plain http to a proxy."""
    connection = http.client.HTTPConnection(*PROXY, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", url)
        answer = connection.getresponse()
        return {
            "status": answer.status,
            "headers": {name.lower(): value for name, value in answer.getheaders()},
            "body": answer.read().decode(errors="replace"),
        }


def send(request: Value) -> Value:
    value = request["prefix"] + held(request["source"])
    sent = {request["header"]: value}
    return {
        "sent": sent,
        "answer": ask(
            request["host"], 443, sent, via_proxy=request["proxy"], body=json.dumps({"echo": value})
        ),
    }


def tcp(way: Value) -> Value:
    with socket.create_connection((way["host"], way["port"]), timeout=2):
        return {"reached": True, "detail": "connected"}


def udp(way: Value) -> Value:
    """A DNS question for a name that would carry data out, asked of a resolver outside."""
    question = b"\x4d\x6f\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06secret\x07example\x00\x00\x01\x00\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(0.5)
        sender.connect((way["host"], way["port"]))
        sender.send(question)
        try:
            sender.recv(512)
        except socket.timeout:  # noqa: UP041 - another class before Python 3.10
            return {"reached": False, "detail": "no answer"}
    return {"reached": True, "detail": "answered"}


def connect(way: Value) -> Value:
    return proxied(ask(way["host"], way["port"], {}, via_proxy=True))


def absolute(way: Value) -> Value:
    return proxied(plain(way["url"]))


def carry(way: Value) -> Value:
    """The placeholder, sent to a host that the credential is not bound to."""
    headers = {way["header"]: way["prefix"] + held(way["source"])}
    return proxied(ask(way["host"], 443, headers, via_proxy=True))


def file(way: Value) -> Value:
    exists = os.path.exists(way["path"])
    return {"reached": exists, "detail": "it is there" if exists else "not in the sandbox"}


def proxied(answer: Value) -> Value:
    denied = "x-moat-denied" in answer["headers"]
    return {
        "reached": not denied,
        "detail": f"status {answer['status']}",
        "denial": answer["body"] if denied else "",
    }


WAYS = {"tcp": tcp, "udp": udp, "connect": connect, "absolute": absolute, "carry": carry, "file": file}


def attempt(function: Callable[[Value], Value], argument: Value) -> Value:
    try:
        return function(argument)
    except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
        return {"reached": False, "error": True, "detail": getattr(error, "strerror", None) or str(error)}


def main() -> None:
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    result = {
        "uid": os.getuid(),
        "requests": [attempt(send, request) for request in plan["requests"]],
        "ways": [attempt(WAYS[way["kind"]], way) for way in plan["ways"]],
        "look": look(),
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
