"""From dependencies, `base_image` and build hooks to a Dockerfile: pure, no engine, no network.

Both builders understand all of it. What comes from npm and PyPI lies in the context, so only Debian's
packages (and what hooks do) are fetched during a build.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import field

from moat.config import HooksConfig
from moat.config.dependencies import BY_NAME, Entry
from moat.config.image import DEFAULT_BASE
from moat.dataclass import dataclass
from moat.errors import StartError
from moat.runtime import trust
from moat.runtime.container import Identity
from moat.runtime.deps.selection import DEBIAN_PYTHON, Interpreter, Selection, select
from moat.runtime.sandbox import HOME

PREFIX = "usr/local"  # where trees go

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9./:@_-]{0,254}")
_SCRATCH = "/tmp/moat-build"  # noqa: S108 - inside the image that is being built
_SYSTEM_PYTHON = "/usr/bin/python3"
# Debian calls these programs otherwise, because of older ones of the same name.
_RENAMED = {"fd": "fdfind", "bat": "batcat"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an image is made of."""

    base: str
    debian: tuple[str, ...]  # packages, in order
    selection: Selection
    interpreter: Interpreter | None = None  # that Python tools and packages are for
    hooks: HooksConfig = field(default_factory=HooksConfig)
    identity: Identity | None = None  # the agent's, where `post_build` needs one

    @property
    def title(self) -> str:
        """For a person: what is special about it."""
        hooks = [f"hooks.{name}" for name in self.scripts]
        return ", ".join([self.base, *self.debian, *self.selection.words, *hooks])

    @property
    def scripts(self) -> dict[str, str]:
        """The build hooks by name."""
        found = {"post_build_root": self.hooks.post_build_root, "post_build": self.hooks.post_build}
        return {name: text for name, text in found.items() if text}


def plan(
    dependencies: Sequence[str],
    base_image: str | None,
    *,
    machine: str = "x64",
    hooks: HooksConfig | None = None,
    identity: Identity | None = None,
) -> Plan:
    """Raises StartError for what is not known, or cannot go together."""
    if base_image is not None and not _IMAGE.fullmatch(base_image):
        raise StartError(f"base_image: {base_image!r} is not the name of an image")
    selection = select(dependencies, machine=machine)
    python = selection.python
    hooks = dataclasses.replace(hooks or HooksConfig(), pre_run=None)
    debian = ["python3", "ca-certificates", *_python_packages(python, base_image)]
    for entry in selection.debian:
        debian += (entry.package or entry.name).split()
    return Plan(
        base=base_image or _default_base(python),
        debian=tuple(dict.fromkeys(debian)),
        selection=selection,
        interpreter=_interpreter(selection, base_image),
        hooks=hooks,
        identity=identity if hooks.post_build else None,
    )


def _default_base(python: str | None) -> str:
    """Debian, or the official Python image for a version that this Debian does not have."""
    return DEFAULT_BASE if not python or python == DEBIAN_PYTHON else f"python:{python}-slim-bookworm"


def _python_packages(version: str | None, base_image: str | None) -> list[str]:
    if version is None:
        return []
    if not version or (version == DEBIAN_PYTHON and base_image is None):
        return ["python3-venv", "python3-pip", "python-is-python3"]
    if base_image is None or _is_python_image(base_image):
        return []  # the official image has it
    return [f"python{version}", f"python{version}-venv", "python3-pip"]


def _is_python_image(base_image: str) -> bool:
    return re.fullmatch(r"([^/]+/)*python([:@].*)?", base_image) is not None


def _interpreter(selection: Selection, base_image: str | None) -> Interpreter | None:
    """Which Python the Python tools and packages have to fit."""
    if not selection.python_tools and not selection.python_packages:
        return None
    version = selection.python
    if base_image is not None and not version:
        raise StartError(
            "dependencies: Moat cannot tell which Python base_image has",
            hint="say it: add e.g. `python@3.13`",
        )
    short = ".".join((version or DEBIAN_PYTHON).split(".")[:2])
    official = _is_python_image(base_image) if base_image else version not in {None, "", DEBIAN_PYTHON}
    if official:
        return Interpreter("/usr/local/bin/python3", short, f"lib/python{short}/site-packages")
    program = _SYSTEM_PYTHON if base_image is None else f"/usr/bin/python{short}"
    return Interpreter(program, short, f"lib/python{short}/dist-packages")


def render(plan: Plan) -> str:
    """The Dockerfile. Its context holds `ca.pem`, and as needed `rootfs/` and `hooks/`."""
    lines = [
        f"FROM {plan.base}",
        "USER root",
        f"COPY ca.pem {_SCRATCH}/ca.pem",
        f"RUN {_debian(plan.debian)}",
    ]
    if plan.selection.packages:
        lines.append("COPY rootfs/ /")
    if links := _links(plan.selection.debian):
        lines.append(f"RUN {links}")
    if plan.selection.python is not None:  # `pip install` is what people type; the sandbox is theirs to break
        lines.append("RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED")
    if plan.scripts:
        lines.append(f"COPY hooks/ {_SCRATCH}/")
    lines += [f"RUN {_hook(name, plan.identity)}" for name in plan.scripts]
    title = plan.title.replace("\\", "").replace('"', "").replace("$", "")
    # In /home the agent makes its own HOME, whatever its uid: the first thing that a container does.
    lines.append(f"RUN : clear up; rm -rf {_SCRATCH}; chmod 1777 {posixpath.dirname(HOME)}")
    lines += [f'LABEL moat.image="1" moat.contents="{title}"', ""]
    return "\n".join(lines)


def _debian(packages: Sequence[str]) -> str:
    """Install what is missing; a base image that has it all needs no network.

    The host's bundle (a company's CA) serves the build only and is removed: the image trusts what its
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


def _links(entries: Iterable[Entry]) -> str:
    renamed = [(entry.name, _RENAMED[entry.name]) for entry in entries if entry.name in _RENAMED]
    return " && ".join(f"ln -sf /usr/bin/{old} /usr/local/bin/{new}" for new, old in renamed)


def _hook(name: str, identity: Identity | None) -> str:
    """Run a hook with the host's trust, which a company's network needs; `post_build` as the agent."""
    run = f"bash -e {_SCRATCH}/{name}"
    steps = [f": hooks.{name}", "set -e", f"export {_trust()}"]
    if name == "post_build" and identity:
        who = f"{identity.uid}:{identity.gid}"
        steps += [
            f"mkdir -p {HOME}",
            f"chown {who} {HOME}",
            f"echo agent:x:{who}::{HOME}:/bin/bash >> /etc/passwd",
            f"cd {HOME}",
        ]
        drop = f"setpriv --reuid={identity.uid} --regid={identity.gid} --clear-groups --inh-caps=-all"
        run = f"{drop} env HOME={HOME} USER=agent {run}"
    return "; ".join([*steps, run])


def _trust() -> str:
    return " ".join(
        f"{name}={shlex.quote(value)}"
        for name, value in trust.trust_environment(f"{_SCRATCH}/ca.pem").items()
    )


def renamed(name: str) -> str:
    """What Debian calls the program of this dependency."""
    entry = BY_NAME[name]
    return _RENAMED.get(name, (entry.commands or (name,))[0])
