"""npm and uv when an index has not what was asked for: their own words, and what to do instead."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_npm_tells_what_it_could_not_install(
    index: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", f"http://{index}/")
    node, npm = (shutil.which(name) for name in ("node", "npm"))
    assert node
    assert npm
    place = tmp_path / "node"
    (place / "bin").mkdir(parents=True)
    (place / "bin/node").symlink_to(node)
    (place / "lib/node_modules").mkdir(parents=True)
    (place / "lib/node_modules/npm").symlink_to(Path(npm).resolve().parent.parent)
    with pytest.raises(StartError, match=r"^npm cannot install no-such-thing@1\.0\.0:\n") as caught:
        await staging.install_node_tools(
            [Package("npm", "no-such-thing", "1.0.0")], place, tmp_path / "tree", tmp_path / "cache"
        )
    assert "404" in str(caught.value)
    assert caught.value.hint == HINT


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
