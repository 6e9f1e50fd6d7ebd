"""From `dependencies` and `base_image` to a Dockerfile: pure, no engine, no network.

The classic builder understands all of it (no BuildKit syntax). What comes from the npm registry is
fetched and verified on the host and copied in, so only Debian's packages are fetched during a build.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from moat.errors import StartError

DEFAULT_BASE = "debian:bookworm-slim"
KNOWN = ("claude-code", "git", "node", "python", "ssh")
# The version that Moat's own suite runs: what Claude Code asks at its first start differs between versions.
CLAUDE_CODE = "2.1.330"
NODE = "22"
PYTHON = "3.11"  # of DEFAULT_BASE

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it ends up in a shell line and in a URL
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9./:@_-]{0,254}")
_SCRATCH = "/tmp/moat-build"  # noqa: S108 - inside the image that is being built


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """A package of the npm registry; `version` may be a prefix (`22`) or a tag (`latest`) until resolved."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What an image is made of."""

    base: str
    debian: tuple[str, ...]  # packages, in order
    node: NpmPackage | None = None
    claude: NpmPackage | None = None
    python: bool = False

    @property
    def title(self) -> str:
        """For a person: what is special about it."""
        npm = [f"{p.name} {p.version}" for p in (self.node, self.claude) if p]
        return ", ".join([self.base, *self.debian, *npm])


def plan(dependencies: Sequence[str], base_image: str | None) -> Plan:
    """Read `node@22`, `git`, …. Raises StartError for what is not known, listing what is."""
    if base_image is not None and not _IMAGE.fullmatch(base_image):
        raise StartError(f"base_image: {base_image!r} is not the name of an image")
    wanted: dict[str, str] = {}
    for text in dependencies:
        name, version = _dependency(text)
        if wanted.get(name, version) != version:
            raise StartError(f"dependencies: {name} is asked for in two versions")
        wanted[name] = version
    base = base_image or _default_base(wanted)
    debian = ["python3", "ca-certificates"]
    if "python" in wanted:
        debian += _python_packages(wanted["python"], base_image)
    if "git" in wanted:
        debian.append("git")
    if "ssh" in wanted:
        debian.append("openssh-client")
    return Plan(
        base=base,
        debian=tuple(dict.fromkeys(debian)),
        node=NpmPackage("node", wanted["node"] or NODE) if "node" in wanted else None,
        claude=NpmPackage("@anthropic-ai/claude-code", wanted["claude-code"] or CLAUDE_CODE)
        if "claude-code" in wanted
        else None,
        python="python" in wanted,
    )


def _dependency(text: str) -> tuple[str, str]:
    name, at, version = text.partition("@")
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.5)
        guess = f"did you mean `{near[0]}`? " if near else ""
        raise StartError(f"dependencies: {name!r} is not known", hint=f"{guess}known are {', '.join(KNOWN)}")
    if at and not _VERSION.fullmatch(version):
        raise StartError(f"dependencies: {text!r} has no valid version")
    if version and name in {"git", "ssh"}:
        raise StartError(f"dependencies: {name} has no versions to choose from", hint=f"write just `{name}`")
    if version and name == "python" and not re.fullmatch(r"3\.\d+(\.\d+)?", version):
        raise StartError(f"dependencies: {text!r} is not a Python version", hint="write `python@3.11`")
    return name, version


def _default_base(wanted: dict[str, str]) -> str:
    """Debian, or the official Python image for a version that this Debian does not have."""
    python = wanted.get("python", "")
    return DEFAULT_BASE if python in {"", PYTHON} else f"python:{python}-slim-bookworm"


def _python_packages(version: str, base_image: str | None) -> list[str]:
    if not version or (version == PYTHON and base_image is None):
        return ["python3-venv", "python3-pip", "python-is-python3"]
    if base_image is None:
        return []  # the official image has it
    return [f"python{version}", f"python{version}-venv", "python3-pip"]


def render(plan: Plan) -> str:
    """The Dockerfile. Its context holds `ca.pem` and, with npm packages, `rootfs/`."""
    lines = [
        f"FROM {plan.base}",
        "USER root",
        f"COPY ca.pem {_SCRATCH}/ca.pem",
        f"RUN {_debian(plan.debian)}",
    ]
    if plan.node or plan.claude:
        lines.append("COPY rootfs/ /")
    finish = [f"rm -rf {_SCRATCH}"]
    if plan.python:  # `pip install` is what people and agents type; the sandbox is theirs to break
        finish.append("rm -f /usr/lib/python3*/EXTERNALLY-MANAGED")
    lines += [f"RUN {'; '.join([': clear up', 'set -e', *finish])}", 'LABEL moat.image="1"', ""]
    return "\n".join(lines)


def _debian(packages: Sequence[str]) -> str:
    """Install what is missing; a base image that has it all needs no network.

    The host's bundle (a company's CA) serves this step only and is removed: the image trusts what its
    base trusts. In a sandbox the merged bundle takes the place of the image's anyway.
    """
    names = " ".join(packages)
    options = f"-o Acquire::https::CAInfo={_SCRATCH}/ca.pem"
    install = (
        f"apt-get {options} update && apt-get {options} install -y --no-install-recommends {names} && "
        "rm -rf /var/lib/apt/lists/*"
    )
    steps = [
        "command -v apt-get >/dev/null || { echo 'the base image is not of the Debian family' >&2; exit 1; }",
        f"{{ cat /etc/ssl/certs/ca-certificates.crt >> {_SCRATCH}/ca.pem 2>/dev/null || true; }}",
        "export DEBIAN_FRONTEND=noninteractive",
        f"if ! dpkg-query -s {names} >/dev/null 2>&1; then {install} || exit 1; fi",
        "test -x /usr/bin/python3",
    ]
    return "; ".join([f": install {names}", "set -e", *steps])
