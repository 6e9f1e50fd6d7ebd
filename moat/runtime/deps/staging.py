"""Packages that need others, installed into a directory on the host by npm and uv, running no code of theirs.

npm runs no install scripts here, uv takes wheels only: what a package would do while it is installed
must not be done on the host. Both read the user's own settings and check every file against its index.

A package may ask for another one from anywhere: a private repository, an archive or directory on this disk, a
server that only this machine can reach. All of it would be in what a sandbox sees. uv takes nothing of the
kind, and npm is kept from it (`npm_guard`).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moat.errors import StartError
from moat.paths import write_private
from moat.runtime import trust
from moat.runtime.deps import npm_guard, pypi
from moat.runtime.deps.package import Package

_SECONDS = 900
_TAIL = 12  # lines of a failed installation that are shown
_SECRET = re.compile(r"(://)[^/@\s]+@")


async def install_node_tools(packages: Sequence[Package], node: Path, tree: Path, cache: Path) -> None:
    """As `npm install --global` lays them out. `node` is the tree with node and npm. Raises StartError."""
    words = [str(node / "bin/node"), "--require", _kept(cache / "npm-guard.cjs", npm_guard.SCRIPT)]
    words += [str(node / "lib/node_modules/npm/bin/npm-cli.js")]
    words += [
        "install",
        "--global",
        f"--prefix={os.path.realpath(tree)}",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
    ]
    words += ["--no-update-notifier", "--loglevel=error", f"--cache={cache / 'npm-cache'}"]
    names = [f"{package.name}@{package.version}" for package in packages]
    await _run([*words, "--", *names], {"NODE_EXTRA_CA_CERTS": _bundle(cache)}, "npm", names)


async def install_python(
    packages: Sequence[Package], uv: Path, site: Path, cache: Path, *, version: str
) -> None:
    """Wheels for Python `version` (`3.11`) below `site`, programs in `site/bin`. Raises StartError."""
    words = [str(uv), "pip", "install", "--target", str(site), "--python", sys.executable]
    words += ["--python-version", version, "--python-platform", pypi.platforms()[0].removeprefix("linux_")]
    words += ["--only-binary", ":all:", "--link-mode", "copy", "--no-config", "--no-progress"]
    words += ["--index-strategy", "unsafe-best-match"]  # all indexes count alike, as they do for pip
    words += ["--cache-dir", str(cache / "uv-cache"), "--no-python-downloads"]
    names = [f"{package.name}=={package.version}" for package in packages]
    # uv does not read pip's configuration; the user's index is the user's index. In the environment: an
    # address may hold a password, and every user of the machine can read arguments.
    environment = {"SSL_CERT_FILE": _bundle(cache)}
    for name, variable in (
        ("index-url", "UV_DEFAULT_INDEX"),
        ("extra-index-url", "UV_INDEX"),
        ("find-links", "UV_FIND_LINKS"),
    ):
        if value := pypi.option(name):
            environment[variable] = (
                ",".join(value.split()) if name == "find-links" else " ".join(value.split())
            )
    await _run([*words, "--", *names], environment, "uv", names)


def _bundle(cache: Path) -> str:
    """What the host trusts, as a file that both programs can read."""
    return _kept(cache / "host-ca.pem", trust.host_bundle())


def _kept(path: Path, content: bytes) -> str:
    if not path.exists() or path.read_bytes() != content:
        write_private(path, content)
    return str(path)


async def _run(words: Sequence[str], extra: Mapping[str, str], what: str, names: Sequence[str]) -> None:
    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            env={**os.environ, **extra},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",  # npm and uv read settings where they stand
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )

    try:
        done = await asyncio.to_thread(call)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"{what} cannot install {', '.join(names)}: {error}") from None
    if done.returncode:
        tail = _SECRET.sub(r"\1", done.stdout).strip().splitlines()[-_TAIL:]
        raise StartError(
            "\n".join([f"{what} cannot install {', '.join(names)}:", *(f"  {line}" for line in tail)]),
            hint="what has to be compiled can be installed in hooks.post_build_root (docker)",
        )


def adopt_programs(site: Path, tree: Path, *, interpreter: str, apart: str | None = None) -> None:
    """Move the programs of `site/bin` to `tree/bin`, where they run with `interpreter`.

    `apart`: the package that is meant. Then only its own programs are taken, and they find their modules
    in `site` themselves; else `site` must be on Python's path.
    """
    where = os.path.relpath(site, tree / "bin")
    own = _own_programs(site, apart) if apart else None
    target = tree / "bin"
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    for program in sorted((site / "bin").iterdir()) if (site / "bin").is_dir() else []:
        if own is not None and program.name not in own:
            continue
        data = program.read_bytes()
        if data.startswith(b"#!") and b"python" in data.partition(b"\n")[0]:
            lines = [f"#!{interpreter}"]
            if apart:
                here = "os.path.dirname(os.path.realpath(__file__))"
                lines.append(f"import os, sys; sys.path.insert(0, os.path.join({here}, {where!r}))")
            data = "\n".join([*lines, ""]).encode() + data.partition(b"\n")[2]
        (target / program.name).write_bytes(data)
        (target / program.name).chmod(0o755)
    shutil.rmtree(site / "bin", ignore_errors=True)
    (site / ".lock").unlink(missing_ok=True)


def _own_programs(site: Path, package: str) -> set[str]:
    wanted = re.sub(r"[-_.]+", "-", package).lower()
    for info in site.glob("*.dist-info"):
        if re.sub(r"[-_.]+", "-", info.name.partition("-")[0]).lower() == wanted:
            record = (info / "RECORD").read_text(encoding="utf-8", errors="replace")
            found = re.findall(r"^(?:\.\./)*bin/([^/,]+),", record, re.MULTILINE)
            return set(found)
    return set()
