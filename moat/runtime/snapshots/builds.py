"""Recognising the build commands that a sandbox runs, by looking at its processes now and then.

A build that starts and ends between two looks is not seen; what it made is then kept by the idle trigger.
"""

from __future__ import annotations

import os.path
import re

from moat.runtime import processes

# Program -> the words one of which has to follow; None: every use of it is a build.
_BUILDS: dict[str, frozenset[str] | None] = {
    **dict.fromkeys(("make", "gmake", "ninja", "samu", "rake", "scons", "latexmk"), None),
    **dict.fromkeys(("tsc", "webpack", "rollup", "esbuild", "mvn", "mvnw", "gradle", "gradlew", "sbt"), None),
    "ant": None,
    "cmake": frozenset({"--build", "--install"}),
    "meson": frozenset({"compile", "install"}),
    **dict.fromkeys(("bazel", "bazelisk", "buck2"), frozenset({"build", "test"})),
    "cargo": frozenset({"build", "b", "install", "test", "t", "bench", "check", "c"}),
    "go": frozenset({"build", "install", "generate", "test"}),
    **dict.fromkeys(
        ("npm", "pnpm", "yarn", "bun"), frozenset({"install", "i", "ci", "add", "build", "pack"})
    ),
    **dict.fromkeys(("vite", "next", "nuxt", "astro", "turbo", "nx", "ng"), frozenset({"build"})),
    **dict.fromkeys(("pip", "pip3"), frozenset({"install", "wheel"})),
    "uv": frozenset({"sync", "build", "pip", "add"}),
    "poetry": frozenset({"install", "build", "add"}),
    **dict.fromkeys(("hatch", "flit", "pdm"), frozenset({"build", "install"})),
    "dotnet": frozenset({"build", "publish", "test", "restore"}),
    **dict.fromkeys(("swift", "zig", "stack", "cabal"), frozenset({"build", "test", "install"})),
    **dict.fromkeys(("bundle", "composer"), frozenset({"install", "update"})),
    "mix": frozenset({"compile", "deps.get"}),
}
_SCRIPTS = re.compile(r"(?:build|compile|bundle|prepare)(?:[:-].*)?")  # of `npm run`
_RUNNERS = frozenset({"npm", "pnpm", "yarn", "bun"})
_INTERPRETERS = re.compile(r"(?:node|nodejs|ruby|perl|bash|sh|dash|python[0-9.]*)")
_SHOWN = 60  # characters of a command in a label


def recognise(argv: list[str]) -> str:
    """The build command that `argv` is, as a label; empty when it is none."""
    words = [os.path.basename(argv[0]), *argv[1:]] if argv else []
    if len(words) > 1 and _INTERPRETERS.fullmatch(words[0]):
        words = _script(words)
    if not words:
        return ""
    program, rest = words[0].removesuffix(".js").removesuffix("-cli"), words[1:]
    if program in _RUNNERS and rest[:1] in (["run"], ["run-script"]):
        return _label(program, rest) if len(rest) > 1 and _SCRIPTS.fullmatch(rest[1]) else ""
    if program not in _BUILDS:
        return ""
    wanted = _BUILDS[program]
    command = next((word for word in rest if not word.startswith("-") or word in (wanted or ())), "")
    return _label(program, rest) if wanted is None or command in wanted else ""


def _script(words: list[str]) -> list[str]:
    """`node /usr/bin/npm ci` is npm; `python -m build` is a program of its own."""
    if words[1] == "-m" and words[0].startswith("python") and len(words) > 2:
        return ["hatch", "build"] if words[2] == "build" else words[2:]
    if words[1].startswith("-"):
        return []
    if words[1].endswith("setup.py"):
        return ["make", "setup.py", *words[2:]]
    return [os.path.basename(words[1]), *words[2:]]


def _label(program: str, rest: list[str]) -> str:
    """The command comes from the sandbox: nothing of it may draw on a terminal."""
    text = " ".join([program, *rest])
    return "".join(c if c.isprintable() else "?" for c in text)[:_SHOWN]


class Builds:
    """The builds of one sandbox, from one look to the next."""

    def __init__(self, first: int) -> None:
        """`first`: the host's number of the sandbox's first process."""
        self._first = first
        self._known: dict[tuple[int, str], str] = {}  # process -> the build command it is, or ""
        self._label = ""  # of the build that runs

    def ended(self) -> str:
        """The label of a build that has ended since the last call; empty when none has."""
        now = {}
        for process in processes.tree(self._first):
            key = (process.pid, process.born)
            if process.state != "Z":
                # A program may replace itself (`sh -c make`): what is no build yet is looked at again.
                now[key] = self._known.get(key) or recognise(processes.arguments(process.pid))
        self._known = now
        running = next((label for label in now.values() if label), "")
        ended = self._label if not running else ""
        self._label = self._label or running if running else ""
        return ended
