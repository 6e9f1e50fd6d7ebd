"""What an image is made of: dependencies, Dockerfile, tag, the host's settings. No engine, no network."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from moat.errors import StartError
from moat.runtime import context, dockerfile, image, packages
from moat.runtime.dockerfile import NpmPackage, plan, render


def test_nothing_asked_for_is_debian_with_python_and_certificates() -> None:
    made = plan((), None)
    assert made.base == "debian:bookworm-slim"
    assert made.debian == ("python3", "ca-certificates")
    text = render(made)
    assert text.startswith("FROM debian:bookworm-slim\nUSER root\n")
    assert "rootfs" not in text


def test_dependencies_become_packages() -> None:
    made = plan(("node", "python", "git", "claude-code"), None)
    assert {"git", "python3-venv", "python3-pip"} <= set(made.debian)
    assert made.node == NpmPackage("node", "22")
    assert made.claude == NpmPackage("@anthropic-ai/claude-code", dockerfile.CLAUDE_CODE)
    assert "COPY rootfs/ /" in render(made)


def test_a_pinned_version_is_the_one_that_is_installed() -> None:
    made = plan(("node@20.11.0", "claude-code@2.1.197"), None)
    assert made.node == NpmPackage("node", "20.11.0")
    assert made.claude == NpmPackage("@anthropic-ai/claude-code", "2.1.197")


@pytest.mark.parametrize(
    ("version", "base_image", "base", "package"),
    [
        ("3.11", None, "debian:bookworm-slim", "python3-venv"),
        ("3.13", None, "python:3.13-slim-bookworm", None),
        ("3.13", "debian:trixie-slim", "debian:trixie-slim", "python3.13-venv"),
    ],
)
def test_python_versions(version: str, base_image: str | None, base: str, package: str | None) -> None:
    made = plan((f"python@{version}",), base_image)
    assert made.base == base
    assert [p for p in made.debian if p.endswith("-venv")] == ([package] if package else [])


@pytest.mark.parametrize(
    ("dependency", "message", "hint"),
    [
        ("nod", "'nod' is not known", "did you mean `node`? known are claude-code, git, node, python"),
        ("claude", "'claude' is not known", "did you mean `claude-code`?"),
        ("postgres", "'postgres' is not known", "known are"),
        ("node@", "no valid version", ""),
        ("node@22;reboot", "no valid version", ""),
        ("node@../../x", "no valid version", ""),
        ("git@2", "git has no versions", ""),
        ("python@2.7", "not a Python version", ""),
        ("", "'' is not known", ""),
    ],
)
def test_what_is_not_known_is_an_error_that_lists_what_is(dependency: str, message: str, hint: str) -> None:
    with pytest.raises(StartError) as caught:
        plan((dependency,), None)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_two_versions_of_one_thing() -> None:
    with pytest.raises(StartError, match="two versions"):
        plan(("node@20", "node@22"), None)
    assert plan(("node@20", "node@20"), None).node == NpmPackage("node", "20")


@pytest.mark.parametrize("name", ["a b", "-x", "a\nRUN x", "$(id)", ""])
def test_a_base_image_is_a_name(name: str) -> None:
    with pytest.raises(StartError, match="base_image"):
        plan((), name)


def test_every_input_changes_the_tag() -> None:
    inputs = [
        (plan((), None), "sha256:1"),
        (plan((), None), "sha256:2"),
        (plan(("git",), None), "sha256:1"),
        (plan(("python",), None), "sha256:1"),
        (plan(("node@22.1.0",), None), "sha256:1"),
        (plan(("node@22.1.1",), None), "sha256:1"),
        (plan(("claude-code@2.1.1",), None), "sha256:1"),
        (plan((), "debian:12"), "sha256:1"),
    ]
    tags = [image.tag_of(*item) for item in inputs]
    assert len(set(tags)) == len(tags)
    assert tags == [image.tag_of(*item) for item in inputs]
    assert all(tag.startswith("moat/run:") and len(tag) == len("moat/run:") + 16 for tag in tags)


def test_the_order_of_dependencies_does_not_matter() -> None:
    assert image.tag_of(plan(("git", "python"), None), "x") == image.tag_of(
        plan(("python", "git"), None), "x"
    )


def test_proxies_are_passed_on_unless_a_build_cannot_reach_them() -> None:
    said: list[str] = []
    environ = {
        "HTTPS_PROXY": "http://u:p@proxy.corp:8080",
        "http_proxy": "localhost:3128",
        "NO_PROXY": "a",
        "X": "y",
    }
    found = image.proxy_arguments(environ, said.append)
    assert found == {"HTTPS_PROXY": "http://u:p@proxy.corp:8080", "NO_PROXY": "a"}
    assert len(said) == 1
    assert "http_proxy" in said[0]


# npm


DOCUMENT: dict[str, Any] = {
    "dist-tags": {"latest": "26.10.0"},
    "versions": {v: {} for v in ("22.9.0", "22.23.3", "22.100.0-rc.1", "2.0.0", "26.10.0")},
}


@pytest.mark.parametrize(
    ("wanted", "version"),
    [("22", "22.23.3"), ("22.9", "22.9.0"), ("latest", "26.10.0"), ("26", "26.10.0"), ("2", "2.0.0")],
)
def test_a_prefix_means_its_newest_release(wanted: str, version: str) -> None:
    assert packages.pick(DOCUMENT, NpmPackage("node", wanted)) == version


@pytest.mark.parametrize("wanted", ["23", "22.23.4", "nonsense"])
def test_a_version_that_does_not_exist(wanted: str) -> None:
    with pytest.raises(StartError, match=f"no node {wanted}"):
        packages.pick(DOCUMENT, NpmPackage("node", wanted))


def test_registry_settings_come_from_the_user_s_npm(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("npm_config_registry", raising=False)
    assert packages.Settings.from_host() == packages.Settings("https://registry.npmjs.org")
    monkeypatch.setenv("CORP_TOKEN", "t0ken")
    (home / ".npmrc").write_text(
        "; comment\nregistry=https://npm.corp.test/all/\n//npm.corp.test/all/:_authToken=${CORP_TOKEN}\n"
        "//other.test/:_authToken=other\n"
    )
    assert packages.Settings.from_host() == packages.Settings("https://npm.corp.test/all", "t0ken")
    assert "t0ken" not in repr(packages.Settings.from_host())


@pytest.mark.parametrize(
    ("node", "npm"), [("18.20.1", "10"), ("22.1.0", "10"), ("24.0.0", "11"), ("26.1.0", "11")]
)
def test_each_node_gets_an_npm_that_it_can_run(node: str, npm: str) -> None:
    assert context.npm_for(node) == npm


def test_the_context_holds_only_what_packages_may_place(tmp_path: Path) -> None:
    package = tmp_path / "p.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name in ("package/bin/node", "package/../../etc/passwd", "package/LICENSE", "package/bin/../x"):
            info = tarfile.TarInfo(name)
            info.size, info.mode = 2, 0o755
            archive.addfile(info, io.BytesIO(b"hi"))
    layer = context.Layer(package, context._place_node)
    with (
        context.write_context("FROM x", b"ca", (layer,), tmp_path / "c") as file,
        tarfile.open(fileobj=file) as tar,
    ):
        assert tar.getnames() == ["Dockerfile", "ca.pem", "rootfs/usr/local/bin/node"]
        assert {(m.mtime, m.uid) for m in tar} == {(0, 0)}


def test_versions_are_remembered_for_a_week(tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_text(json.dumps({"node@22": {"version": "22.1.0", "at": 4e9}}))
    registry = packages.Registry(None, packages.Settings("https://unreachable.invalid"), tmp_path)  # type: ignore[arg-type]
    coroutine = registry.resolve(NpmPackage("node", "22"))
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)  # answered without any waiting: no request was made
    assert done.value.value == NpmPackage("node", "22.1.0")
