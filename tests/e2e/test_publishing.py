"""The `npm` and `pypi` grants with the programs that publish packages: npm, twine and uv.

The stand-ins take nothing but the real tokens, of two registries two different ones, and show what they were sent.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.claude_world import RUNTIMES
from tests.e2e.clients import LEFT, SAY, assert_unseen, said
from tests.e2e.sites import site
from tests.fakes.packages import NpmRegistry, PyPIUpload
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
NPMJS, ACME, PYPI = "registry.npmjs.org", "npm.example.com", "upload.pypi.org"
PATH = "/team/npm"  # where the registry lies on its host
TOKENS = {
    NPMJS: "npm_RealTokenOfNpmjs0123456789abcdefghij",
    ACME: "npm_RealTokenOfAcme0123456789abcdefghijk",
    PYPI: "pypi-RealTokenOfPyPI0123456789abcdefghijklmnopqrstuvwxyz",
}
PYTHON = r"""
export PYTHONPATH=/opt/lib NO_COLOR=1 COLUMNS=300
say twine python3 -m twine upload --non-interactive --disable-progress-bar dist/one-1.0-py3-none-any.whl
say twine-taken python3 -m twine upload --non-interactive --disable-progress-bar --verbose dist/taken-1.0-py3-none-any.whl
say uv uv publish --no-cache dist/two-1.0-py3-none-any.whl
say uv-taken uv publish --no-cache dist/taken-1.0-py3-none-any.whl
"""
NPM = r"""
export W=$PWD npm_config_loglevel=silly npm_config_fetch_retries=0
npm() { command npm --no-audit --no-fund --no-update-notifier "$@" 2>>"$W/heard"; }
make() { mkdir -p "$1"; printf '{"name": "%s", "version": "1.0.0"}' "$2" >"$1/package.json"; }
make ours acme-tools; make theirs @acme/tools; make user user
say whoami npm whoami
say publish npm publish ./ours
say publish-scoped npm publish ./theirs
say tag npm dist-tag add @acme/tools@1.0.0 beta
say install npm --prefix user install acme-tools @acme/tools@beta
say installed cat user/node_modules/acme-tools/package.json user/node_modules/@acme/tools/package.json
say missing npm view @acme/none; echo "said: $(grep -o 'not found, sent.*' heard | head -1)"
"""


@dataclass
class World:
    npmjs: NpmRegistry
    acme: NpmRegistry
    pypi: PyPIUpload
    server: Vendor


@pytest.fixture
def world(moat: Moat, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(home / "key"))
    npmjs, acme, pypi = NpmRegistry(TOKENS[NPMJS]), NpmRegistry(TOKENS[ACME], PATH), PyPIUpload(TOKENS[PYPI])

    def answer(asked: Asked) -> Answer:
        return {NPMJS: npmjs, ACME: acme, PYPI: pypi}[asked.host](asked)

    (home / ".npmrc").write_text(
        f"//{NPMJS}/:_authToken={TOKENS[NPMJS]}\n"
        f"@acme:registry=https://{ACME}{PATH}/\n//{ACME}{PATH}/:_authToken={TOKENS[ACME]}\n"
    )
    with vendor(tmp_path / "vendor", answer, *TOKENS) as server:
        server.config(home / ".moat", *TOKENS)
        for words in (["npm"], ["npm", "--host", ACME]):
            done = moat("grant", *words, "--method", "import")
            assert done.returncode == 0, done.stderr
            assert "Authenticated as octocat." in done.stdout
        done = moat("grant", "pypi", "--token-stdin", input=TOKENS[PYPI] + "\n")
        assert done.returncode == 0, done.stderr
        yield World(npmjs, acme, pypi, server)


def wheel(directory: Path, name: str) -> None:
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as file:
        info = f"{name}-1.0.dist-info"
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_packages_are_published_and_installed_without_a_token_in_the_sandbox(
    moat: Moat, world: World, home: Path, tmp_path: Path, runtime: str
) -> None:
    """Seen to fail: when `to_scrub` gives nothing, twine, uv and npm print the tokens."""
    workspace, programs = tmp_path / "workspace", tmp_path / "programs"
    (workspace / "dist").mkdir()
    for name in ("one", "two", "taken"):
        wheel(workspace / "dist", name)
    programs.mkdir()
    uv = Path(sysconfig.get_paths()["scripts"]) / "uv"
    shutil.copy2(uv, programs / "uv")
    lines = [
        "dependencies: [curl, git, python]",
        f"grants: [npm, 'npm:{ACME}', pypi]",
        "network: {policy: strict}",
        f"mounts: ['{site(runtime)}:/opt/lib:ro', '{programs}:/opt/bin:ro']",
    ]
    (workspace / "agent.yaml").write_text("\n".join(lines))
    npm = NPM if runtime == "embedded" else ""  # it is on the host, not in the base image
    done = moat("run", "--runtime", runtime, "--", "sh", "-c", SAY + PYTHON + npm + LEFT, timeout=300)
    answers = said(done)
    assert "https://pypi.org/project/one/1.0/" in answers["twine"]
    for name in ("twine-taken", "uv-taken"):
        assert "The name is taken, Basic ***" in answers[name]
    wheels = [workspace / f"dist/{name}-1.0-py3-none-any.whl" for name in ("one", "two")]
    assert world.pypi.files == {path.name: path.read_bytes() for path in wheels}
    if runtime == "embedded":
        check_npm(answers, world)
    assert b"TWINE_PASSWORD=pypi-moat" in (workspace / "processes").read_bytes()
    assert_unseen(TOKENS.values(), done, workspace, home)


def check_npm(said: dict[str, str], world: World) -> None:
    assert said["whoami"] == "octocat"
    assert (said["publish"], said["publish-scoped"]) == ("+ acme-tools@1.0.0", "+ @acme/tools@1.0.0")
    assert said["tag"] == "+beta: @acme/tools@1.0.0"
    assert (
        said["installed"]
        == '{"name": "acme-tools", "version": "1.0.0"}{"name": "@acme/tools", "version": "1.0.0"}'
    )
    assert set(world.npmjs.packages) == {"acme-tools"}
    assert world.acme.packages["@acme/tools"]["dist-tags"] == {"latest": "1.0.0", "beta": "1.0.0"}
    assert said["said"].startswith("not found, sent Bearer ***")
