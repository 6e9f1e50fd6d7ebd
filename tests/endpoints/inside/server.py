"""Runs in a sandbox: a server on 127.0.0.1:3000 that does what dev servers do, and what bad ones do.

Standard library only. More listeners: 0.0.0.0:3001 and, where there is IPv6, [::1]:3002.
"""

import asyncio
import base64
import hashlib
import json
import os
import struct


async def head_of(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    method, target, _ = lines[0].split(" ", 2)
    return method, target, [line.split(": ", 1) for line in lines[1:]]


async def body_of(reader, fields):
    """(bytes, digest): read at the pace at which it comes."""
    digest, size = hashlib.sha256(), 0
    if fields.get("transfer-encoding") == "chunked":
        while length := int((await reader.readline()).split(b";")[0], 16):
            piece = await reader.readexactly(length)
            size, _ = size + length, digest.update(piece)
            await reader.readexactly(2)
        await reader.readline()
    left = int(fields.get("content-length", 0))
    while left:
        piece = await reader.read(min(left, 65536))
        left, size = left - len(piece), size + len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


async def events(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(5):
        data = b"data: %d\n\n" % number
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
        await asyncio.sleep(0.3)
    writer.write(b"0\r\n\r\n")


async def websocket(reader, writer, fields):
    key = fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    writer.write(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )
    while True:
        first, second = await reader.readexactly(2)
        length = second & 127
        if length == 126:
            (length,) = struct.unpack(">H", await reader.readexactly(2))
        mask = await reader.readexactly(4)
        data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await reader.readexactly(length)))
        if first & 15 == 8:
            writer.write(b"\x88\x00")
            return
        size = bytes([length]) if length < 126 else b"\x7e" + struct.pack(">H", length)
        writer.write(bytes([0x80 | first & 15]) + size + data)
        await writer.drain()


async def answer(reader, writer):
    """One request; False ends the connection."""
    method, target, headers = await head_of(reader)
    fields = {name.lower(): value for name, value in headers}
    path, _, query = target.partition("?")
    if path == "/events":
        await events(writer)
        return True
    if path == "/socket":
        await websocket(reader, writer, fields)
        return False
    if path == "/close":
        return False
    if path == "/half":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
        return False
    if path == "/nonsense":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello")
        return False
    if path == "/open-end":
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")
        return False
    if path == "/early":
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nsize")
        await writer.drain()
        await asyncio.sleep(0.3)
        return False
    if path == "/big":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % int(query))
        block = bytes(range(256)) * 256
        for _ in range(int(query) // len(block)):
            writer.write(block)
            await writer.drain()
        return True
    if path == "/page":
        text = os.environ.get("PAGE", "<!doctype html><title>page</title><h1>page</h1>").encode()
        kind = b"text/html"
    else:
        size, digest = await body_of(reader, fields)
        env = {name: value for name, value in os.environ.items() if name.startswith("MOAT_")}
        found = {
            "method": method,
            "target": target,
            "headers": headers,
            "size": size,
            "digest": digest,
            "env": env,
        }
        found["connection"] = writer.get_extra_info("peername")[1]
        text, kind = json.dumps(found).encode(), b"application/json"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n" % (kind, len(text)))
    if query == "cookie":
        writer.write(b"Set-Cookie: own=1; Path=/\r\nSet-Cookie: wide=1; Path=/; Domain=localhost\r\n")
    writer.write(b"\r\n" + (b"" if method == "HEAD" else text))
    return True


async def serve(reader, writer):
    try:
        while await answer(reader, writer):
            await writer.drain()
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    await asyncio.start_server(serve, "127.0.0.1", 3000)
    await asyncio.start_server(serve, "0.0.0.0", 3001)
    try:
        await asyncio.start_server(serve, "::1", 3002)
    except OSError:
        print("no IPv6", flush=True)
    print("ready", flush=True)
    await asyncio.sleep(3600)


asyncio.run(main())
