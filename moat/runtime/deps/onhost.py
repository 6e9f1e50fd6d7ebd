"""Dependencies of an embedded sandbox: trees are mounted, Debian's programs have to be on the host.

No root and no image: what comes from npm and PyPI lies in `~/.moat/cache` and is shown read-only at
`/opt/moat`. What cannot be had is told before anything starts, with the command that installs it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable

from moat.config.dependencies import Entry, Kind
from moat.errors import StartError
from moat.runtime import environment
from moat.runtime.deps.resolve import machine, resolve
from moat.runtime.deps.selection import Interpreter, Selection, select
from moat.runtime.deps.trees import Tree, trees
from moat.runtime.dockerfile import renamed
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import HOME, Mount

PLACE = "/opt/moat"  # of trees in the sandbox
_IMAGE_ONLY = "an embedded sandbox has no image of its own; it has this machine's /usr"


class OnHost(Part):
    """What `dependencies` asks for, in the embedded runtime."""

    name = "dependencies"

    async def prepare(self, run: RunContext) -> Addition:
        """Raises StartError with everything that cannot be had here."""
        request = run.request
        if run.runtime != "embedded":  # an image has them
            return Addition()
        selection = select(request.dependencies, machine=machine())
        _check(request, selection)
        if not selection.packages:
            return Addition()
        cache = run.home.cache / "docker"  # one download serves both runtimes
        exact = await resolve(selection, cache, fresh=request.rebuild)
        interpreter = _interpreter(exact)
        made = await trees(exact, cache, run.progress, interpreter=interpreter, fresh=request.rebuild)
        return _addition(made)


def _addition(made: Iterable[Tree]) -> Addition:
    mounts = tuple(Mount.of(tree.path, f"{PLACE}/{tree.name}", read_only=True) for tree in made)
    first = [f"{mount.target}/bin" for mount in mounts]
    env = {"PATH": ":".join([*first, f"{HOME}/.local/bin", environment.PATH])}
    python = [f"{PLACE}/{tree.name}/{tree.python}" for tree in made if tree.python]
    return Addition(env=env | ({"PYTHONPATH": python[0]} if python else {}), mounts=mounts)


def _check(request: RunRequest, selection: Selection) -> None:
    problems = []
    if request.base_image:
        problems.append(f"base_image: {_IMAGE_ONLY}")
    hooks = [name for name in ("post_build_root", "post_build") if getattr(request.hooks, name)]
    problems += [f"hooks.{name}: {_IMAGE_ONLY}; hooks.pre_run works here" for name in hooks]
    problems += [f"{name}: a service is a container, which needs docker" for name, _ in selection.services]
    missing = [entry for entry in selection.debian if not installed(entry)]
    problems += [f"{entry.name}: not installed on this machine" for entry in missing]
    packages = [package for entry in missing for package in entry.debian.split()]
    if selection.python is not None and not _installed(f"python{selection.python or 3}"):
        name = f"python{selection.python or 3}"
        problems.append(f"python: this machine has no {name}")
        packages.append(name)
    if problems:
        install = [f"apt-get install {' '.join(packages)}"] if packages else []
        raise StartError(
            "\n".join(
                ["the embedded runtime cannot give this run what it asks for:", *(f"  {p}" for p in problems)]
            ),
            hint="\n".join([*install, "or use `--runtime docker`, whose images have it all"]),
        )


def installed(entry: Entry) -> bool:
    """Whether this machine has what has to be on it for this row."""
    if entry.kind not in {Kind.DEBIAN, Kind.PYTHON}:
        return True
    names = ("python3",) if entry.kind is Kind.PYTHON else (renamed(entry.name), entry.name)
    return any(map(_installed, names))


def _installed(command: str) -> bool:
    """Where the sandbox looks: the host's other directories are not in it."""
    return shutil.which(command, path=environment.PATH) is not None


def _interpreter(selection: Selection) -> Interpreter | None:
    """The host's Python, which Python tools and packages have to fit. Raises StartError without one."""
    if not selection.python_tools and not selection.python_packages:
        return None
    path = shutil.which(f"python{selection.python or 3}", path="/usr/bin:/bin")
    if path is None:
        raise StartError("Python tools need Python on this machine", hint="apt-get install python3")
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run(
        [path, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=False, cwd="/"
    )
    version = done.stdout.strip()
    return Interpreter(path, version, f"lib/python{version}/dist-packages")
