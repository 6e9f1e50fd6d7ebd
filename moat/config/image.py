"""`hooks:`, `services:`, `volumes:` and `container:` of agent.yaml: what a sandbox is made of."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from moat.config.check import Checker, Node, kind_of
from moat.config.dependencies import BY_NAME, Kind
from moat.dataclass import dataclass
from moat.regex import regex

DEFAULT_BASE = "debian:bookworm-slim"
LEAST_MEMORY = 128 << 20  # bytes; less does not even start an interpreter
SERVICE_MEMORY = 2 << 30
_MOST_MEMORY = 1 << 44
_MOST_CPUS = 1024
_MEMORY = regex(r"([1-9][0-9]{0,8})([mg])b?", re.IGNORECASE)
_CPUS = regex(r"[0-9]{1,4}(\.[0-9]{1,2})?")
_VOLUME = regex(r"[a-z0-9][a-z0-9_-]{0,62}")
_IMAGE = regex(r"[a-z0-9][A-Za-z0-9._/:@-]{0,254}")
_SERVICES = tuple(name for name, entry in BY_NAME.items() if entry.kind is Kind.SERVICE)
SERVICE_PORTS = {"postgres": 5432, "mysql": 3306, "redis": 6379}
_ENGINE_ONLY = "the sandbox has no network, so the engine's resolver would not be asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class HooksConfig:
    post_build_root: str | None = None  # shell, while the image is built, as root
    post_build: str | None = None  # the same as the agent
    pre_run: str | None = None  # shell in /workspace before the command, at each start


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Settings of a service that `dependencies` names (`postgres@17`)."""

    image: str | None = None
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    wait: bool = True  # until it is ready, before the command starts
    memory: int = SERVICE_MEMORY  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeConfig:
    name: str
    target: str  # absolute and normalised
    read_only: bool = False
    owner: str = ""  # the `name:` of the file, under which volumes are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    memory: int = 0  # bytes; 0: the runtime's default
    cpus: float = 0.0  # 0: all


def read_hooks(check: Checker, node: Node) -> HooksConfig:
    names = ("post_build_root", "post_build", "pre_run")
    known: dict[str, Callable[[Node], object]] = {
        name: partial(check.text, what=f"hooks.{name}") for name in names
    }
    found: dict[str, Any] = check.fields(node, "hooks", known, {})
    return HooksConfig(**found)


def read_container(check: Checker, node: Node) -> ContainerConfig:
    known: dict[str, Callable[[Node], object]] = {
        "memory": lambda value: _memory(check, value),
        "cpus": lambda value: _cpus(check, value),
    }
    refused = {
        "dns": _ENGINE_ONLY,
        "ulimits": "a sandbox is held by its memory and its number of processes",
    }
    found: dict[str, Any] = check.fields(node, "container", known, refused)
    return ContainerConfig(**found)


def _memory(check: Checker, node: Node, what: str = "container.memory") -> int | None:
    """Megabytes as a number, or `512m`, `4g`."""
    if node.id == "scalar" and kind_of(node) == "int":
        number = check.integer(node, what, LEAST_MEMORY >> 20, _MOST_MEMORY >> 20)
        return None if number is None else number << 20
    text = check.matching(node, what, _MEMORY, "an amount of memory, e.g. 4g, 512m or 4096 (MB)")
    match = _MEMORY.fullmatch(text or "")
    if not match:
        return None
    size = int(match[1]) << (30 if match[2].lower() == "g" else 20)
    if not LEAST_MEMORY <= size <= _MOST_MEMORY:
        check.wrong(node, f"{what} must be at least {LEAST_MEMORY >> 20}m")
        return None
    return size


def _cpus(check: Checker, node: Node) -> float | None:
    kind = kind_of(node) if node.id == "scalar" else ""
    if kind in {"int", "float"} and _CPUS.fullmatch(str(node.value)):
        value = float(node.value)
        if 0.1 <= value <= _MOST_CPUS:
            return value
    check.wrong(node, "container.cpus must be a number of processors, e.g. 2 or 0.5, at least 0.1")
    return None


def read_services(check: Checker, node: Node) -> Mapping[str, ServiceConfig]:
    """By the service's name. Whether `dependencies` has it is checked with the whole file."""
    known: dict[str, Callable[[Node], object]] = {
        name: partial(_service, check, name=name) for name in _SERVICES
    }
    found: dict[str, Any] = check.fields(node, "services", known, {})
    return MappingProxyType(found)


def _service(check: Checker, node: Node, name: str) -> ServiceConfig:
    def wait(value: Node) -> bool | None:
        return check.boolean(value, f"services.{name}.wait")

    known: dict[str, Callable[[Node], object]] = {
        "env": lambda value: check.variables(value, f"services.{name}.env"),
        "image": lambda value: check.matching(
            value, f"services.{name}.image", _IMAGE, f"an image, e.g. {name}:{BY_NAME[name].version}"
        ),
        "wait": wait,
        "memory": lambda value: _memory(check, value, f"services.{name}.memory"),
    }
    found: dict[str, Any] = check.fields(node, f"services.{name}", known, {})
    return ServiceConfig(**found)


def read_volumes(
    check: Checker, node: Node, refused_target: Callable[[str], str | None]
) -> tuple[VolumeConfig, ...]:
    found: list[VolumeConfig] = []
    for item in check.items(node, "volumes", "[{name: cache, target: /home/agent/.cache}]"):
        volume = _volume(check, item, refused_target)
        if volume is None:
            continue
        if any(volume.name == other.name for other in found):
            check.wrong(item, f"two volumes are called {volume.name}")
        if any(volume.target == other.target for other in found):
            check.wrong(item, f"two volumes have the target {volume.target}")
        found.append(volume)
    return tuple(found)


def _volume(check: Checker, node: Node, refused_target: Callable[[str], str | None]) -> VolumeConfig | None:
    def target(value: Node) -> str | None:
        text = check.text(value, "the target of a volume")
        if text is not None and (reason := refused_target(text)):
            check.wrong(value, reason)
            return None
        return None if text is None else posixpath.normpath(text)

    known: dict[str, Callable[[Node], object]] = {
        "name": lambda value: check.matching(
            value, "the name of a volume", _VOLUME, "a volume's name: lower-case letters, digits, `-` and `_`"
        ),
        "target": target,
        "readonly": lambda value: check.boolean(value, "readonly"),
    }
    refused = {"type": "a volume is a directory of Moat's own, in every runtime"}
    found: dict[str, Any] = check.fields(node, "a volume", known, refused)
    if node.id == "mapping":
        written = [str(key.value) for key, _ in node.value]
        for name in ("name", "target"):
            if name not in written:
                check.wrong(node, f"a volume needs a {name}")
    if not {"name", "target"} <= found.keys():
        return None
    return VolumeConfig(name=found["name"], target=found["target"], read_only=found.get("readonly", False))


def check_together(check: Checker, root: Node, found: dict[str, Any]) -> None:
    """What services and volumes ask of the rest of the file; volumes learn whose they are."""
    wanted = {text.partition("@")[0] for text in found.get("dependencies", ())}
    for name, place in _keys(root, "services"):
        if name in _SERVICES and name not in wanted:
            check.wrong(place, f"services.{name} sets up a service that `dependencies` does not name")
    ports = {SERVICE_PORTS[name]: name for name in wanted & set(_SERVICES)}
    for port in ports.keys() & set(found["network"].host if "network" in found else ()):
        _, place = next(item for item in _keys(root, None) if item[0] == "network")
        check.wrong(place, f"network.host: {port} is the port of {ports[port]} in the sandbox as well")
    if found.get("volumes"):
        _, place = next(item for item in _keys(root, None) if item[0] == "volumes")
        owner = found.get("name")
        if not owner:
            check.wrong(place, "volumes are kept under the name of the file: add `name:`")
        found["volumes"] = tuple(replace(volume, owner=owner or "") for volume in found["volumes"])
        taken = {mount.target for mount in found.get("mounts", ())}
        for volume in found["volumes"]:
            if volume.target in taken:
                check.wrong(place, f"a volume and a mount have the target {volume.target}")


def _keys(root: Node, section: str | None) -> list[tuple[str, Node]]:
    """The keys of the file, or of one of its sections, with their places."""
    if section is None:
        return [(str(key.value), key) for key, _ in root.value] if root.id == "mapping" else []
    values = [value for key, value in root.value if str(key.value) == section] if root.id == "mapping" else []
    return _keys(values[0], None) if values else []
