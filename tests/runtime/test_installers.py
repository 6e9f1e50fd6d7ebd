"""npm and uv when an index has not what was asked for: their own words, and what to do instead."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

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
    locked: Mapping[str, Any] | None = None  # where its own lock file says that the dependency is

    def do_GET(self) -> None:
        about: dict[str, Any] = {
            "name": "wants",
            "version": "1.0.0",
            "dependencies": {"other": self.dependency},
        }
        files = {"package.json": about}
        if self.locked is not None:
            packages = {"": about, "node_modules/other": self.locked}
            files["npm-shrinkwrap.json"] = {"name": "wants", "lockfileVersion": 3, "packages": packages}
        if self.path.endswith(".tgz"):
            return self._answer(archive(files))
        dist = {"tarball": f"http://{self.headers['host']}/wants/-/wants-1.0.0.tgz"}
        versions = {"1.0.0": {**about, "_hasShrinkwrap": self.locked is not None, "dist": dist}}
        document = {"name": "wants", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
        return self._answer(json.dumps(document).encode())

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def archive(files: Mapping[str, object]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as made:
        for name, value in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text := json.dumps(value).encode())
            made.addfile(member, io.BytesIO(text))
    return packed.getvalue()


class _Inside(_Registry):
    """A server that only this machine reaches."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self._answer(archive({"package.json": OTHER, "private.txt": "SECRET"}))


OTHER = {"name": "other", "version": "1.0.0", "bin": {"other": "run.js"}}


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A package of the user's, in a directory, in a repository, and packed."""
    place = tmp_path / "private"
    place.mkdir()
    (place / "package.json").write_text(json.dumps(OTHER))
    (place / "private.txt").write_text("SECRET")
    (place / "run.js").touch(0o600)
    git = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "private.tgz").write_bytes(archive({"package.json": OTHER, "private.txt": "SECRET"}))
    return place


@contextlib.contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("locked", [False, True], ids=["dependency", "lock"])
@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("git+file://{private}", "git: other@git"),
        ("file:{private}.tgz", "this disk: other@file:"),
        ("file:{private}", "this disk: "),
        ("{inside}/other.tgz", "an address: other@http"),
    ],
    ids=["git", "archive", "directory", "address"],
)
async def test_npm_brings_nothing_of_the_users_into_a_sandbox(
    node: Path,
    private: Path,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    where: str,
    what: str,
    locked: bool,
) -> None:
    """A cloned agent.yaml names a package, which names what is on this disk or what only this machine can reach.

    Seen failing without the guard: all but the links were installed, with what nobody had granted; of a link the
    program was made executable where it is.
    """
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    with served(_Registry) as registry, served(_Inside) as inside:
        place = where.format(private=private, inside=inside)
        monkeypatch.setattr(_Registry, "dependency", "1.0.0" if locked else place)
        monkeypatch.setattr(_Registry, "locked", {"version": "1.0.0", "resolved": place} if locked else None)
        monkeypatch.setattr(_Inside, "asked", [])
        monkeypatch.setenv("npm_config_registry", registry)
        with pytest.raises(StartError, match=f"a package wants another one from {what}"):
            await staging.install_node_tools([Package("npm", "wants", "1.0.0")], node, tree, cache)
    assert not list(tree.rglob("private.txt"))
    assert _Inside.asked == []
    assert (private / "run.js").stat().st_mode & 0o777 == 0o600


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_npm_that_cannot_be_watched_installs_nothing(node: Path, tmp_path: Path, home: Path) -> None:
    npm = node / "lib/node_modules/npm"
    npm.unlink()
    (npm / "bin").mkdir(parents=True)
    (npm / "bin/npm-cli.js").write_text("console.log('installed')\n")
    with pytest.raises(StartError, match="made in another way than those that Moat knows"):
        await staging.install_node_tools(
            [Package("npm", "wants", "1.0.0")], node, tmp_path / "tree", tmp_path / "cache"
        )


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
