"""A git server over TLS: `git http-backend`, as every smart HTTP host runs it.

    with GitServer(directory) as server: server.url("acme/tools.git"), server.ca_file, server.requests

Every bare repository below `directory` is served, read-only. With `password` it asks for Basic
authentication, user `user`.
"""

from __future__ import annotations

import base64
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from tests.fakes.git_backend import http_backend
from tests.fakes.pki import make_pki

HOST = "git.example.test"


class GitServer:
    def __init__(
        self, directory: Path, *, hosts: tuple[str, ...] = (HOST, "localhost", "github.com")
    ) -> None:
        self.directory = directory
        self.password: str | None = None
        self.redirect: str | None = None  # another base URL, where everything has moved to below /moved
        self.requests: list[tuple[str, str | None]] = []  # path with query, Authorization
        pki = directory / ".pki"
        pki.mkdir(parents=True, exist_ok=True)
        # Not the name of another stand-in's CA: GnuTLS, which git uses, may take the wrong one of two.
        self.ca_file, leaf = make_pki(pki, hosts, ca_name="stand-in git CA")
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.git = self
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf)
        self._http.context = context

    @property
    def port(self) -> int:
        return self._http.server_address[1]

    def url(self, repository: str, host: str = HOST) -> str:
        return f"https://{host}:{self.port}/{repository}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    git: GitServer
    context: ssl.SSLContext

    def finish_request(self, request, client_address):
        try:
            with self.context.wrap_socket(request, server_side=True) as tls:
                self.RequestHandlerClass(tls, client_address, self)
        except (OSError, ssl.SSLError):
            pass  # a client that does not trust us


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("content-length", "0"))))

    def _answer(self, body: bytes) -> None:
        git = self.server.git
        git.requests.append((self.path, self.headers.get("authorization")))
        if git.redirect and not self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"{git.redirect}/moved{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if git.password and self.headers.get("authorization") != _basic(git.password):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        target = self.path.removeprefix("/moved")
        answer = http_backend(git.directory, self.command, target, headers, body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)


def _basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"user:{password}".encode()).decode()


def commit(work: Path, bare: Path, message: str = "one") -> str:
    """Commit everything in `work` and push it to the bare repository `bare`; the commit."""
    where = ["git", "-C", str(work), "-c", "user.name=t", "-c", "user.email=t@example.test"]
    if not (work / ".git").exists():
        subprocess.run([*where, "init", "-q", "-b", "main"], check=True)
    if not bare.exists():
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    subprocess.run([*where, "add", "-A", "-f"], check=True)
    subprocess.run([*where, "commit", "-q", "--allow-empty", "-m", message], check=True)
    subprocess.run([*where, "push", "-q", "-f", str(bare), "HEAD", "--tags"], check=True)
    return subprocess.check_output([*where, "rev-parse", "HEAD"], text=True).strip()
