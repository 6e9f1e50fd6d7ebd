"""Endpoints in a real Chromium: trusted TLS, a dev server with hot reload, WebSocket, events, other sites."""

from __future__ import annotations

import itertools
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.conftest import REPOSITORY
from tests.endpoints.chromium import BrowserError, chromium
from tests.endpoints.conftest import INSIDE, Place
from tests.endpoints.test_ca import new_database, stolen

pytestmark = [pytest.mark.anyio, pytest.mark.embedded, pytest.mark.docker]

VITE = REPOSITORY / ".cache/vite/node_modules"


def user_of(place: Place) -> Path:
    return Path(place.environment["HOME"])


@pytest.fixture(scope="session")
def trusting(world: Place) -> Place:
    """The world's user has a Chromium, and has done what the guide says."""
    database = user_of(world) / ".local/share/pki/nssdb"
    if not database.exists():
        new_database(database)
    done = world.command("trust", "install")
    assert done.returncode == 0, done.stderr
    return world


async def test_nothing_is_trusted_before_the_user_says_so(place: Place) -> None:
    place.start("early", "embedded")
    async with chromium(user_of(place)) as page:
        with pytest.raises(BrowserError, match="ERR_CERT_AUTHORITY_INVALID"):
            await page.open(f"https://localhost:{place.port}/")


async def test_indexes_are_pages_that_stand_alone(trusting: Place, tmp_path: Path) -> None:
    base = f"localhost:{trusting.port}"
    async with chromium(user_of(trusting)) as page:
        for url in (f"https://{base}/", f"https://alpha.{base}/", f"https://web.nobody.{base}/"):
            await page.open(url)
            security = page.security(url)
            assert security is not None
            assert security["issuer"].startswith("Moat endpoints ")
            links = await page.run("[...document.links].map(link => link.href)")
            assert f"https://web.alpha.{base}/" in links
            assert await page.run("getComputedStyle(document.querySelector('main')).maxWidth") != "none"
            asked = [e for e in page.events if e["method"] == "Network.requestWillBeSent"]
            hosts = {e["params"]["request"]["url"] for e in asked}
            assert {u for u in hosts if not u.endswith("/favicon.ico")} == {url}, "nothing is fetched"
        await page.screenshot(tmp_path / "index.png")


@pytest.mark.timeout(180)
async def test_a_dev_server_with_hot_reload(trusting: Place, run: str, tmp_path: Path) -> None:
    """A page that waits for its server, then Vite's own client over its WebSocket, then an edit inside."""
    assert (VITE / "vite").is_dir(), "Vite is missing: run `bash .ci/test`"
    name = f"vite-{run}"
    workspace = trusting.workspace(name)
    shutil.copytree(INSIDE / "vite", workspace, dirs_exist_ok=True)
    runtime, node = ("embedded", "") if run == "alpha" else ("docker", "dependencies: [node]\n")
    config = f"ports: {{web: 3000}}\n{node}mounts: ['{VITE}:/opt/vite/node_modules:ro']\n"
    run_id = trusting.start(name, runtime, "sh", "serve.sh", config=config)
    try:
        async with chromium(user_of(trusting)) as page:
            await page.open(f"https://web.{name}.localhost:{trusting.port}/")
            text = await page.run("document.body.innerText")
            assert "Port 3000 in the sandbox" in text
            assert "nothing listens" in text
            (workspace / "go").touch()
            await page.until("document.querySelector('#out')?.textContent === 'one'", 40)
            await page.run("window.mark = 1")
            (workspace / "edit").touch()
            await page.until("document.querySelector('#out')?.textContent === 'two'")
            assert await page.run("window.mark") == 1, "it was not loaded anew"
    finally:
        trusting.command("stop", run_id)


async def test_websocket_and_events_in_a_page(trusting: Place, run: str) -> None:
    async with chromium(user_of(trusting)) as page:
        await page.open(f"https://web.{run}.localhost:{trusting.port}/page")
        said = await page.run(
            """new Promise((done, failed) => {
                const socket = new WebSocket(`wss://${location.host}/socket`), heard = [];
                socket.onopen = () => { socket.send("hello"); socket.send("x".repeat(5000)) };
                socket.onmessage = ({data}) => {
                    heard.push(data.length);
                    if (heard.length == 2) { done(heard); socket.close() }
                };
                socket.onerror = () => failed(new Error("no socket"));
            })"""
        )
        assert said == [5, 5000]
        times = await page.run(
            """new Promise(done => {
                const events = new EventSource("/events"), times = [];
                events.onmessage = () => {
                    times.push(performance.now());
                    if (times.length == 5) { events.close(); done(times) }
                };
            })"""
        )
        assert all(later - earlier > 100 for earlier, later in itertools.pairwise(times)), times


async def test_a_page_of_one_run_is_a_stranger_to_the_other(trusting: Place) -> None:
    """Cookies do not mix; scripts, sockets and frames of alpha's page do not reach beta.

    With `guard.foreign` returning "" the socket opens and the request arrives (its answer stays unread).
    """
    base = f"localhost:{trusting.port}"
    async with chromium(user_of(trusting)) as page:
        await page.open(f"https://web.alpha.{base}/page?cookie")
        assert await page.run("document.cookie") == "own=1", "no cookie for all of localhost"
        assert (
            await page.run(
                f"fetch('https://wide.alpha.{base}/', {{mode: 'no-cors'}}).then(answer => answer.type)"
            )
            == "opaque"
        ), "the same run may be asked"
        with pytest.raises(BrowserError, match="Failed to fetch"):
            await page.run(f"fetch('https://web.beta.{base}/')")
        opened = await page.run(
            f"""new Promise(done => {{
                const socket = new WebSocket('wss://web.beta.{base}/socket');
                socket.onopen = () => done("open");
                socket.onerror = () => done("refused");
            }})"""
        )
        assert opened == "refused"
        await page.run(
            f"""new Promise(done => {{
                const frame = document.createElement('iframe');
                frame.onload = done;
                frame.src = 'https://web.beta.{base}/page';
                document.body.append(frame);
            }})"""
        )
        answered = {
            event["params"]["response"]["url"]: event["params"]["response"]["status"]
            for event in page.events
            if event["method"] == "Network.responseReceived"
        }
        assert answered[f"https://web.beta.{base}/page"] == 403
        await page.run(f"location.href = 'https://web.beta.{base}/page'")
        await page.until("document.title === 'page' && location.host.startsWith('web.beta')")
        assert await page.run("document.cookie") == ""


@contextmanager
def tls_server(leaf: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(peer, server_side=True) as tls:
                    tls.recv(1000)
                    tls.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nbelieved")
            except OSError:
                continue

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    ("name", "believed"),
    [("thief.localhost", True), ("example.com", False), ("127.0.0.1", False)],
)
async def test_chromium_believes_the_ca_for_localhost_only(
    trusting: Place, name: str, believed: bool
) -> None:
    """A certificate that a thief of the key made, in the browser that trusts the CA.

    With NameConstraints left out example.com and the address are believed too.
    """
    import ipaddress

    kind = x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    with tls_server(stolen(trusting.home, kind)) as port:
        async with chromium(user_of(trusting), "--host-resolver-rules=MAP example.com 127.0.0.1") as page:
            if believed:
                await page.open(f"https://{name}:{port}/")
                assert await page.run("document.body.innerText") == "believed"
            else:
                with pytest.raises(BrowserError, match="ERR_CERT"):
                    await page.open(f"https://{name}:{port}/")
