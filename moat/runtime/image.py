"""The image of a run: found by the hash of what it is made of, else built."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.paths import private_dir
from moat.runtime import dockerfile, trust
from moat.runtime.deps.resolve import resolve
from moat.runtime.deps.selection import DEBIAN_PYTHON
from moat.runtime.dockerfile import Plan
from moat.runtime.sandbox import Progress

if TYPE_CHECKING:
    from moat.runtime.engine import Engine

REPOSITORY = "moat/run"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Image:
    id: str
    tag: str
    env: tuple[str, ...]  # `NAME=value`, what its Dockerfile sets


async def ensure(
    engine: Engine, plan: Plan, *, cache: Path, progress: Progress, rebuild: bool = False
) -> Image:
    """The image of this plan, built when there is none of its hash or when `rebuild`.

    Raises StartError: a version that does not exist, a base image that cannot be had, a step that failed
    (with the last lines of its output).
    """
    base = await _base(engine, plan, progress)
    plan = dataclasses.replace(plan, selection=await resolve(plan.selection, cache, fresh=rebuild))
    tag = tag_of(plan, base)
    if not rebuild and (found := await engine.image(tag)):
        return _image(tag, found)
    async with _building(cache, tag, progress):
        found = old = await engine.image(tag)  # by another run meanwhile
        if rebuild or not found:
            await _make(engine, plan, tag, cache=cache, progress=progress, fresh=rebuild)
            found = await engine.image(tag)
        if old and found and old["Id"] != found["Id"]:
            await engine.remove_image(str(old["Id"]))
    if not found:
        raise StartError(f"the engine built {tag} and does not have it")
    return _image(tag, found)


def _image(tag: str, details: dict[str, Any]) -> Image:
    return Image(str(details["Id"]), tag, tuple(details.get("Config", {}).get("Env") or ()))


def tag_of(plan: Plan, base_id: str) -> str:
    """Every input: the base image itself, the steps, the exact versions, the text of hooks.

    The host's CAs and proxies are none: they serve the build and leave nothing in its result.
    """
    packages = [f"{package.registry}:{package.name}@{package.version}" for package in plan.selection.packages]
    inputs = [base_id, dockerfile.render(plan), packages, plan.scripts, repr(plan.interpreter)]
    return f"{REPOSITORY}:{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]}"


async def _base(engine: Engine, plan: Plan, progress: Progress) -> str:
    from moat.runtime.engine_http import EngineError

    reference = plan.base
    if found := await engine.image_id(reference):
        return found
    progress(f"pulling {reference}")
    try:
        async for line in engine.pull(reference):
            progress(line)
        found = await engine.image_id(reference)
    except EngineError as error:
        hint = f"`docker pull {reference}`, or name another Debian image with `base_image:`"
        if reference.startswith("python:"):
            hint += f"\nDebian's own Python needs no such image: write `python@{DEBIAN_PYTHON}`"
        raise StartError(
            f"the base image {reference} is not here and cannot be pulled: {error}", hint=hint
        ) from None
    if not found:
        raise StartError(f"the engine pulled {reference} and does not have it")
    return found


@asynccontextmanager
async def _building(cache: Path, tag: str, progress: Progress) -> AsyncIterator[None]:
    """One build of a tag at a time, across processes; a second run waits for the first one's result."""
    path = private_dir(cache / "locks") / f"image-{tag.rpartition(':')[2]}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    progress("waiting for another run that builds the same image")
                told = True
                await anyio.sleep(0.2)
        yield
    finally:
        os.close(fd)


async def _make(
    engine: Engine, plan: Plan, tag: str, *, cache: Path, progress: Progress, fresh: bool
) -> None:
    from moat.runtime.build import build
    from moat.runtime.context import write_context
    from moat.runtime.deps.trees import trees

    progress(f"building the sandbox image ({plan.title})")
    made = await trees(plan.selection, cache, progress, interpreter=plan.interpreter, fresh=fresh)
    text, ca = dockerfile.render(plan), trust.host_bundle()
    context = await anyio.to_thread.run_sync(write_context, text, ca, made, plan.scripts, cache)
    with context:
        await build(
            engine,
            context,
            tag=tag,
            arguments=proxy_arguments(os.environ, progress),
            fresh=fresh,
            progress=progress,
        )


def proxy_arguments(environ: Mapping[str, str], progress: Progress) -> dict[str, str]:
    """The host's proxy as build arguments that the builder keeps out of the image and of its history."""
    found = {name: environ[name] for name in _PROXIES if environ.get(name)}
    for name, value in list(found.items()):
        if name.lower() != "no_proxy" and is_loopback(value):
            progress(f"not using {name} in the build: this machine's loopback cannot be reached from there")
            del found[name]
    return found


def is_loopback(proxy: str) -> bool:
    host = urlsplit(proxy if "://" in proxy else f"http://{proxy}").hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")
