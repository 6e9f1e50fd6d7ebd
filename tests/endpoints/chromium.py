"""A real Chromium, driven over its DevTools protocol: one page, what it shows, what it was told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1000,700", "--remote-debugging-port=0",
)  # fmt: skip


class BrowserError(Exception):
    """A page did not load, or a script in it failed."""


class Page:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            value = json.loads(message.data)
            if "id" in value:
                self._waiting.pop(value["id"]).set_result(value)
            else:
                self.events.append(value)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        value = await asyncio.wait_for(answer, 30)
        if "error" in value:
            raise BrowserError(value["error"]["message"])
        return value["result"]

    async def open(self, url: str) -> None:
        """Navigate; raises BrowserError with Chromium's own error (`net::ERR_…`) when there is no page."""
        self.events.clear()
        answer = await self.call("Page.navigate", url=url)
        if error := answer.get("errorText"):
            raise BrowserError(error)
        async with asyncio.timeout(30):
            while not any(event["method"] == "Page.loadEventFired" for event in self.events):
                await asyncio.sleep(0.05)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 20) -> Any:
        """Wait until an expression is true."""
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(BrowserError):  # a page that is just being replaced
                    if value := await self.run(script):
                        return value
                await asyncio.sleep(0.05)

    async def screenshot(self, path: Path) -> None:
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    def security(self, url: str) -> dict[str, Any] | None:
        """What Chromium found out of the TLS of a response."""
        for event in self.events:
            if event["method"] == "Network.responseReceived":
                response = event["params"]["response"]
                if response["url"] == url:
                    found: dict[str, Any] | None = response.get("securityDetails")
                    return found
        return None

    async def aclose(self) -> None:
        await self._socket.close()
        await self._reading


@contextlib.asynccontextmanager
async def chromium(home: Path, *flags: str) -> AsyncIterator[Page]:
    """A new browser of a user whose HOME is `home`; it trusts what that user's databases say."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: run `bash .ci/test`"
    profile = Path(tempfile.mkdtemp(prefix="mt-chromium-", dir="/tmp"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    process = subprocess.Popen(
        [program, *_FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"],
        env=environment | {"HOME": str(home)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        port = await _port(profile, process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                pages = [item for item in await response.json() if item["type"] == "page"]
            socket = await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=1 << 26)
            page = Page(socket)
            for domain in ("Page", "Runtime", "Network"):
                await page.call(f"{domain}.enable")
            try:
                yield page
            finally:
                await page.aclose()
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        shutil.rmtree(profile, ignore_errors=True)


async def _port(profile: Path, process: subprocess.Popen[bytes]) -> int:
    file = profile / "DevToolsActivePort"
    async with asyncio.timeout(40):
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
                return int(file.read_text().splitlines()[0])
            await asyncio.sleep(0.05)
    raise BrowserError("chromium did not start")
