"""What is asked for: one run, as a value that can be sent to a supervisor as JSON.

Nothing secret is in a request; the way to the vault travels next to it (`launch`).
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moat.config import HostRules, NetworkConfig
from moat.runtime.sandbox import HomeFile, Mount, Size

_NO_ENV: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One command in one sandbox against one workspace."""

    argv: tuple[str, ...]
    workspace: Path  # absolute
    name: str | None = None  # a DNS label; None: `adjective-animal`
    grants: tuple[str, ...] = ()  # in order, without duplicates
    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)  # may not override proxy or trust
    mounts: tuple[Mount, ...] = ()  # besides the workspace
    home_files: tuple[HomeFile, ...] = ()
    network: NetworkConfig = field(default_factory=NetworkConfig)
    runtime: str | None = None  # `docker`, `embedded`; None: chosen (MOAT_RUNTIME, engine, embedded)
    tty: Size | None = None  # None: plain pipes
    stdin: bool = False  # plain runs: somebody will send stdin
    hold: bool = False  # start the command only when the first viewer is there
    agent: str | None = None  # `claude`; a label in the record
    config: str | None = None  # digest of the agent.yaml that this came from
    dependencies: tuple[str, ...] = ()
    base_image: str | None = None
    rebuild: bool = False
    memory: int = 0  # bytes; 0: the runtime's default
    pids: int = 1024

    def to_json(self) -> dict[str, Any]:
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        value["workspace"] = str(self.workspace)
        value["env"] = dict(self.env)
        value["mounts"] = [[str(m.source), m.target, m.read_only] for m in self.mounts]
        value["home_files"] = [
            [f.path, base64.b64encode(f.data).decode("ascii"), f.mode] for f in self.home_files
        ]
        value["network"] = dataclasses.asdict(self.network)
        value["tty"] = [self.tty.columns, self.tty.rows] if self.tty else None
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRequest:
        """The inverse of `to_json`, for JSON that a Moat process wrote."""
        fields = dict(value)
        network = fields["network"]
        fields["workspace"] = Path(fields["workspace"])
        fields["mounts"] = tuple(Mount(Path(s), t, ro) for s, t, ro in fields["mounts"])
        fields["home_files"] = tuple(
            HomeFile(path, base64.b64decode(data), mode) for path, data, mode in fields["home_files"]
        )
        fields["network"] = NetworkConfig(
            policy=network["policy"],
            rules=tuple(HostRules(r["host"], tuple(r["rules"])) for r in network["rules"]),
            host=tuple(network["host"]),
        )
        fields["tty"] = Size(*fields["tty"]) if fields["tty"] else None
        for name in ("argv", "grants", "dependencies"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
