"""A request survives the way to a supervisor as it is."""

from __future__ import annotations

import json
from pathlib import Path

from moat.config import (
    ContainerConfig,
    HooksConfig,
    HostRules,
    McpServer,
    NetworkConfig,
    ServiceConfig,
    SnapshotConfig,
    VolumeConfig,
)
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import HomeFile, Mount
from moat.runtime.size import Size


def test_a_request_comes_back_as_it_was() -> None:
    request = RunRequest(
        argv=("sh", "-c", "ü"),
        workspace=Path("/w"),
        grants=("github",),
        env={"A": "1"},
        mounts=(Mount(Path("/data"), "/data", read_only=True),),
        home_files=(HomeFile(".x", b"\0\xff", 0o644),),
        network=NetworkConfig(
            policy="strict", rules=(HostRules("a.example", ("allow GET /**",)),), host=(5432,)
        ),
        tty=Size(80, 24),
        container=ContainerConfig(memory=1 << 30, cpus=1.5),
        ports={"web": 3000},
        mcp=(McpServer(name="m", url="https://m.example/mcp", deny=("rm*",)),),
        snapshots=SnapshotConfig(idle=False, exclude=("*.o",)),
        hooks=HooksConfig(pre_run="true"),
        services={"postgres": ServiceConfig(env={"X": "y"})},
        volumes=(VolumeConfig(name="v", target="/v"),),
    )
    assert RunRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_the_defaults_come_back_too() -> None:
    request = RunRequest(argv=("true",), workspace=Path("/w"))
    assert RunRequest.from_json(json.loads(json.dumps(request.to_json()))) == request
