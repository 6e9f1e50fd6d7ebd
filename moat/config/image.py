"""`hooks:`, `services:`, `volumes:` and `container:` of agent.yaml: what a sandbox is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


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


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeConfig:
    name: str
    target: str  # absolute and normalised
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    memory: int = 0  # bytes; 0: the runtime's default
    cpus: float = 0.0  # 0: all
