"""`hooks`, `services`, `volumes`, `container`, `interactive`, `version`: what they may say, and each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from moat.config import ContainerConfig, HooksConfig, ServiceConfig, VolumeConfig, load
from moat.errors import ConfigError

TEXT = """\
name: shop
version: 1.0
interactive: true
dependencies: [postgres@17, redis]
hooks: {post_build_root: "a", post_build: "b", pre_run: "c"}
services:
  postgres: {image: "pg:1", env: {POSTGRES_DB: shop, N: 1}, wait: false}
volumes:
  - {name: cache, target: /home/agent/.cache/}
  - {name: data, target: /data, readonly: true}
container: {memory: 512, cpus: 1.5}
"""


def test_every_key(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(TEXT)
    found = load(tmp_path)
    assert found.interactive is True
    assert found.hooks == HooksConfig(post_build_root="a", post_build="b", pre_run="c")
    env = {"POSTGRES_DB": "shop", "N": "1"}
    assert found.services == {"postgres": ServiceConfig(image="pg:1", env=env, wait=False)}
    assert found.volumes == (
        VolumeConfig(name="cache", target="/home/agent/.cache", owner="shop"),
        VolumeConfig(name="data", target="/data", read_only=True, owner="shop"),
    )
    assert found.container == ContainerConfig(memory=512 << 20, cpus=1.5)


@pytest.mark.parametrize(
    ("text", "size"), [("4g", 4 << 30), ("512M", 512 << 20), ("1gb", 1 << 30), ("128", 128 << 20)]
)
def test_amounts_of_memory(tmp_path: Path, text: str, size: int) -> None:
    (tmp_path / "agent.yaml").write_text(f"container: {{memory: {text}}}")
    assert load(tmp_path).container.memory == size


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("container: {memory: 64}", "1:21: container.memory must be between 128 and "),
        ("container: {memory: 64m}", "1:21: container.memory must be at least 128m"),
        ("container: {memory: lots}", "1:21: 'lots' is not an amount of memory, e.g. 4g, 512m or 4096 (MB)"),
        ("container: {cpus: 0}", "1:19: container.cpus must be a number of processors"),
        ("container: {cpus: '2'}", "1:19: container.cpus must be a number of processors"),
        ("container: {dns: [8.8.8.8]}", "1:13: 'dns': the sandbox has no network"),
        ("hooks: {prerun: x}", "1:9: unknown key 'prerun'; did you mean 'pre_run'?"),
        ("hooks: {pre_run: [x]}", "1:18: hooks.pre_run must be a string, not a list"),
        ("services: {redis: {}}", "1:12: services.redis sets up a service that `dependencies` does not name"),
        ("services: {postgre: {}}", "1:12: unknown key 'postgre'; did you mean 'postgres'?"),
        ("dependencies: [redis]\nservices: {redis: {wait: 1}}", "2:26: services.redis.wait must be true or false"),
        (
            "dependencies: [redis]\nservices: {redis: {memory: 64m}}",
            "2:28: services.redis.memory must be at least 128m",
        ),
        ("dependencies: [redis]\nservices: {redis: {image: -x}}", "2:27: '-x' is not an image, e.g. redis:7"),
        ("dependencies: [redis]\nnetwork: {host: [6379]}", "2:1: network.host: 6379 is the port of redis"),
        ("volumes: [{name: a, target: /a}]", "1:1: volumes are kept under the name of the file: add `name:`"),
        ("name: x\nvolumes: [{target: /a}]", "2:11: a volume needs a name"),
        ("name: x\nvolumes: [{name: ../a, target: /a}]", "2:18: '../a' is not a volume's name"),
        ("name: x\nvolumes: [{name: a, target: /usr/x}]", "2:29: the target /usr/x belongs to the system"),
        ("name: x\nvolumes: [{name: a, target: a}]", "2:29: the target 'a' must be an absolute path"),
        ("name: x\nvolumes: [{name: a, target: /a}, {name: a, target: /b}]", "2:34: two volumes are called a"),
        ("name: x\nvolumes: [{name: a, target: /a}, {name: b, target: /a}]", "2:34: two volumes have the target /a"),
        ("interactive: 1", "1:14: interactive must be true or false"),
        ("secrets: {A: op://x}", "1:1: 'secrets': they would be real secrets"),
        ("clipboard: true", "1:1: 'clipboard': the clipboard may hold a password"),
        ("codex: {}", "1:1: 'codex': Moat has no sessions of it"),
        ("sandbox: none", "1:1: 'sandbox': there is no run without a sandbox"),
    ],
)  # fmt: skip
def test_each_mistake(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "agent.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert caught.value.problems[0].startswith(f"agent.yaml:{problem}")
