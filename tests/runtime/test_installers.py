"""npm and uv when an index has not what was asked for: their own words, and what to do instead."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from moat.errors import StartError
from moat.runtime.deps import staging
from moat.runtime.deps.package import Package

HINT = "what has to be compiled can be installed in hooks.post_build_root (docker)"


class _Empty(BaseHTTPRequestHandler):
    """An index that has nothing."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def index() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A tree with the machine's node and npm."""
    program, npm = (shutil.which(name) for name in ("node", "npm"))
    assert program
    assert npm
    place = tmp_path / "node"
    (place / "bin").mkdir(parents=True)
    (place / "bin/node").symlink_to(program)
    (place / "lib/node_modules").mkdir(parents=True)
    (place / "lib/node_modules/npm").symlink_to(Path(npm).resolve().parent.parent)
    return place


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_npm_tells_what_it_could_not_install(
    index: str, node: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", f"http://{index}/")
    with pytest.raises(StartError, match=r"^npm cannot install no-such-thing@1\.0\.0:\n") as caught:
        await staging.install_node_tools(
            [Package("npm", "no-such-thing", "1.0.0")], node, tmp_path / "tree", tmp_path / "cache"
        )
    assert "404" in str(caught.value)
    assert caught.value.hint == HINT


class _Registry(BaseHTTPRequestHandler):
    """An npm registry with one package, `wants`, whose one dependency is somewhere else."""

    dependency = ""

    def do_GET(self) -> None:
        about: dict[str, Any] = {
            "name": "wants",
            "version": "1.0.0",
            "dependencies": {"other": self.dependency},
        }
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            member = tarfile.TarInfo("package/package.json")
            member.size = len(text := json.dumps(about).encode())
            archive.addfile(member, io.BytesIO(text))
        if self.path.endswith(".tgz"):
            return self._answer(packed.getvalue())
        dist = {"tarball": f"http://{self.headers['host']}/wants/-/wants-1.0.0.tgz"}
        versions = {"1.0.0": {**about, "dist": dist}}
        document = {"name": "wants", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
        return self._answer(json.dumps(document).encode())

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_npm_brings_no_repository_of_the_users_into_a_sandbox(
    node: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloned agent.yaml names a package, which names a repository on this disk (or one that the user's key opens).

    Seen failing without `_NO_PROGRAMS`: it was installed, with all of a repository that nobody had granted.
    """
    private = tmp_path / "private"
    private.mkdir()
    (private / "package.json").write_text(json.dumps({"name": "other", "version": "1.0.0"}))
    (private / "private.txt").write_text("SECRET")
    git = ["git", "-C", str(private), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(_Registry, "dependency", f"git+file://{private}")
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    with ThreadingHTTPServer(("127.0.0.1", 0), _Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_address[1]}/")
        with pytest.raises(StartError, match="wants another one from git, which npm may not run here"):
            await staging.install_node_tools([Package("npm", "wants", "1.0.0")], node, tree, cache)
        server.shutdown()
    assert not list(tree.rglob("private.txt"))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_uv_tells_what_it_could_not_install_without_the_password_of_the_index(
    index: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:pa55word@{index}/simple")
    uv = Path(sys.executable).parent / "uv"
    with pytest.raises(StartError, match=r"^uv cannot install no-such-thing==1\.0\.0:\n") as caught:
        await staging.install_python(
            [Package("pypi", "no-such-thing", "1.0.0")],
            uv,
            tmp_path / "site",
            tmp_path / "cache",
            version="3.11",
        )
    assert "no-such-thing" in str(caught.value).partition("\n")[2]
    assert "pa55word" not in str(caught.value)
    assert caught.value.hint == HINT
