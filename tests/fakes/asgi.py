"""An ASGI application served by uvicorn in a thread, with TLS or without, and gone without a trace afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def served(app: Any, certificate: Path | None = None, port: int = 0) -> Iterator[int]:
    """Serve `app` on loopback until the block ends; yields the port."""
    import uvicorn

    sock = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
    config.load()
    if certificate is not None:
        config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        config.ssl.load_cert_chain(certificate)
    server = uvicorn.Server(config)

    async def serve() -> None:
        await server.serve(sockets=[sock])
        # uvicorn leaves connections open that were in the middle of an answer.
        for connection in tuple(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    try:
        yield int(sock.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive(), "the server does not end"
