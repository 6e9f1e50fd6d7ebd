"""`endpoints:` of config.yaml: the gateway that serves `https://<endpoint>.<run>.localhost:<port>`."""

from __future__ import annotations

from typing import Any

from moat.config.check import Checker, Node
from moat.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointsConfig:
    port: int | None = None  # None: MOAT_ENDPOINT_PORT, else 8443 or the next free one, remembered


def read(check: Checker, node: Node) -> EndpointsConfig:
    known = {"port": lambda value: check.integer(value, "endpoints.port", 1, 65535)}
    found: dict[str, Any] = check.fields(node, "endpoints", known, {})
    return EndpointsConfig(**found)
