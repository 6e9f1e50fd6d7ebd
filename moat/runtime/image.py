"""The image of a run: found by the hash of what it is made of, else built."""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from moat.errors import StartError
from moat.paths import private_dir
from moat.runtime import dockerfile, trust
from moat.runtime.dockerfile import Plan
from moat.runtime.sandbox import Progress

if TYPE_CHECKING:
    from moat.runtime.context import Layer
    from moat.runtime.engine import Engine

_REPOSITORY = "moat/run"
_TAIL = 15  # lines of a failed step that are shown
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # the builder paints stderr red
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Image:
    id: str
    tag: str
    env: tuple[str, ...]  # `NAME=value`, what its Dockerfile sets


async def ensure(
    engine: Engine,
    dependencies: tuple[str, ...],
    base_image: str | None,
    *,
    cache: Path,
    progress: Progress,
    rebuild: bool = False,
) -> Image:
    """The image for these dependencies, built when there is none of its hash or when `rebuild`.

    Raises StartError: an unknown dependency, a base image that cannot be had, a step that failed (with
    the last lines of its output).
    """
    plan = dockerfile.plan(dependencies, base_image)
    base = await _base(engine, plan.base, progress)
    plan = await _resolved(plan, cache, fresh=rebuild)
    tag = tag_of(plan, base)
    if not rebuild and (found := await engine.image(tag)):
        return _image(tag, found)
    async with _building(cache, tag, progress):
        found = old = await engine.image(tag)  # by another run meanwhile
        if rebuild or not found:
            await _build(engine, plan, tag, cache=cache, progress=progress, fresh=rebuild)
            found = await engine.image(tag)
        if old and found and old["Id"] != found["Id"]:
            await engine.remove_image(str(old["Id"]))
    if not found:
        raise StartError(f"the engine built {tag} and does not have it")
    return _image(tag, found)


def _image(tag: str, details: dict[str, Any]) -> Image:
    return Image(str(details["Id"]), tag, tuple(details.get("Config", {}).get("Env") or ()))


def tag_of(plan: Plan, base_id: str) -> str:
    """Every input: the base image itself, the steps, the exact versions.

    The host's CAs and proxies are none: they serve the build and leave nothing in its result.
    """
    inputs = [
        base_id,
        dockerfile.render(plan),
        *(f"{p.name}@{p.version}" for p in (plan.node, plan.claude) if p),
    ]
    return f"{_REPOSITORY}:{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]}"


async def _base(engine: Engine, reference: str, progress: Progress) -> str:
    from moat.runtime.engine import EngineError

    if found := await engine.image_id(reference):
        return found
    progress(f"pulling {reference}")
    try:
        async for line in engine.pull(reference):
            progress(line)
        found = await engine.image_id(reference)
    except EngineError as error:
        raise StartError(
            f"the base image {reference} is not here and cannot be pulled: {error}",
            hint=f"`docker pull {reference}`, or name another Debian image with `base_image:`",
        ) from None
    if not found:
        raise StartError(f"the engine pulled {reference} and does not have it")
    return found


async def _resolved(plan: Plan, cache: Path, *, fresh: bool) -> Plan:
    """The plan with exact versions."""
    if not plan.node and not plan.claude:
        return plan
    from moat.runtime.packages import exact, open_registry

    if all(exact(package) for package in (plan.node, plan.claude) if package):
        return plan
    async with open_registry(cache / "npm") as registry:
        return dataclasses.replace(
            plan,
            node=await registry.resolve(plan.node, fresh=fresh) if plan.node else None,
            claude=await registry.resolve(plan.claude, fresh=fresh) if plan.claude else None,
        )


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


async def _build(
    engine: Engine, plan: Plan, tag: str, *, cache: Path, progress: Progress, fresh: bool
) -> None:
    from moat.runtime.context import fetch_layers, write_context
    from moat.runtime.engine import EngineError
    from moat.runtime.packages import open_registry

    progress(f"building the sandbox image ({plan.title})")
    layers: tuple[Layer, ...] = ()
    if plan.node or plan.claude:
        async with open_registry(cache / "npm") as registry:
            layers = await fetch_layers(plan, registry, progress)
    text, ca = dockerfile.render(plan), trust.host_bundle()
    context = await anyio.to_thread.run_sync(write_context, text, ca, layers, cache)
    tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
    arguments = proxy_arguments(os.environ, progress)
    with context:
        try:
            async for line in _lines(engine.build(context, tag=tag, arguments=arguments, fresh=fresh)):
                _show(line, tail, progress)
        except EngineError as error:
            raise StartError(
                "\n".join(
                    [f"the sandbox image could not be built: {error}", *(f"  {line}" for line in tail)]
                ),
                hint="see the last lines of the step above; `--rebuild` starts afresh",
            ) from None


def _show(line: str, tail: collections.deque[str], progress: Progress) -> None:
    line = _COLOUR.sub("", line)
    if line.startswith("Step "):
        tail.clear()
        progress(line.partition(";")[0].replace(" : RUN : ", ": ").replace(" : ", ": "))
    elif line and not line.startswith((" ---> ", "Removing intermediate container")):
        tail.append(line)


async def _lines(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    rest = ""
    async for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            yield line.rstrip("\r")
    if rest:
        yield rest


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
