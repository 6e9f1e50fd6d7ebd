"""`moat doctor`: try what a run needs, for real, and say how to fix what does not work."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Literal

import moat
from moat import surroundings
from moat.cli import own_place
from moat.cli.output import Progress, dumb, emit, emit_json, reason
from moat.cli.parser import Parser
from moat.dataclass import dataclass
from moat.errors import MoatError
from moat.paths import Home, private_dir, runtime_dir, write_private
from moat.runtime import known

_PATIENCE = 300.0  # seconds for one sandbox: an image may have to be built first
_KEYRING_DEADLINE = 15.0  # seconds; long enough for the desktop's unlock dialog to be noticed
_MARGIN = 26  # columns before what is said of a thing
_HOST = "doctor.example"  # played by an origin on loopback
_COLOURS = {"ok": "32", "warn": "33", "fail": "31;1"}
# What clients do: trust the system's certificates, use the proxy variables or just connect.
_FETCH = """
import ssl, sys, urllib.request
trust = urllib.request.HTTPSHandler(context=ssl.create_default_context())
for proxies in (None, {}):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), trust)
    with opener.open("https://" + sys.argv[1] + "/", timeout=10) as answer:
        print(answer.status)
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was tried. `fail`: something that is needed is broken."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat doctor", description="Check this machine, and say how to fix what is missing.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(argv)

    import asyncio

    surroundings.leave(*known.workspaces(Home.from_environment()))
    rows = asyncio.run(examine(Home.from_environment(), show=None if options.json else _show))
    if options.json:
        emit_json([dataclasses.asdict(row) for row in rows])
    return 1 if any(row.status == "fail" for row in rows) else 0


async def examine(home: Home, show: Callable[[Row], None] | None = None) -> list[Row]:
    """Every row, in an order in which a cause comes before its effects; each is shown as it is known."""
    rows = []
    progress = Progress()
    async for row in _examine(home, progress.show):
        progress.clear()
        rows.append(row)
        if show:
            show(row)
    return rows


async def _examine(home: Home, progress: Callable[[str], None]) -> AsyncIterator[Row]:
    yield _ours(home)
    state = _attempt("state", lambda: _state(home))
    yield state
    if state.status == "fail":
        return  # every run needs it; what else is wrong will be seen when it works
    from moat.cli import doctor_home

    yield _attempt("config", lambda: _config(home))
    yield _attempt("disk", lambda: doctor_home.room(home))
    yield _attempt("journal", lambda: doctor_home.journal(home))
    progress("trying the runtimes…")
    probes = [await _runtime(name) for name in ("embedded", "docker")]
    usable = [row.name for row in probes if row.status == "ok"]
    for row in probes:
        # One runtime is enough; without any, each row is a reason why nothing can run.
        yield row if usable or row.status == "ok" else dataclasses.replace(row, status="fail")
    for name in usable:
        progress(f"starting a sandbox ({name})…")
        yield await _sandbox(name, home, progress)
    progress("asking the keyring…")
    yield _attempt("keyring", lambda: _keyring(home))
    yield _attempt("grants", lambda: _grants(home))
    yield _attempt("claude", lambda: _claude(needed="embedded" in usable))
    yield _attempt("endpoints", lambda: doctor_home.endpoints(home))


def _attempt(name: str, check: Callable[[], Row]) -> Row:
    try:
        return check()
    except MoatError as error:
        return Row(name, "fail", str(error), error.hint or "")
    except OSError as error:
        return Row(name, "fail", f"{error.filename or name}: {error.strerror or error}")
    except subprocess.SubprocessError as error:
        return Row(name, "fail", str(error))


def _ours(home: Home) -> Row:
    place = Path(moat.__file__ or "").parent
    system = f"{platform.system()} {platform.release()}"
    detail = f"{moat.__version__} in {place}, Python {platform.python_version()}, {system}"
    if sys.platform != "linux":
        return Row("moat", "warn", detail, "sandboxes are made on Linux only for now")
    if entry := own_place.changeable(*known.workspaces(home)):
        fix = "install it outside of workspaces: pipx install, or uv tool install"
        return Row("moat", "warn", f"{detail}; an agent can change {entry}", fix)
    return Row("moat", "ok", detail)


def _state(home: Home) -> Row:
    """Write where runs are recorded, and look at where their sockets go."""
    try:
        private_dir(home.root)
        probe = private_dir(home.cache) / f"doctor-{os.getpid()}"
        write_private(probe, b"written by moat doctor\n")
        probe.unlink()
    except OSError as error:
        raise MoatError(reason(error), hint="set MOAT_HOME to a directory that you can write") from error
    return Row("state", "ok", f"{home.root} can be written, sockets in {runtime_dir()}")


def _config(home: Home) -> Row:
    from moat.config import load_user

    upstream = load_user(home).upstream
    if not home.config_file.exists():
        return Row("config", "ok", "none; it is optional")
    if upstream.ca_bundle and not os.access(upstream.ca_bundle, os.R_OK):
        return Row(
            "config",
            "fail",
            f"upstream.ca_bundle {upstream.ca_bundle} cannot be read",
            f"edit {home.config_file}",
        )
    return Row("config", "ok", str(home.config_file))


async def _runtime(name: str) -> Row:
    from moat.runtime.choice import runtime

    try:
        probe = await runtime(name).probe()
    except MoatError as error:
        return Row(name, "warn", str(error), error.hint or "")
    return Row(name, "ok" if probe.usable else "warn", probe.reason, probe.hint)


async def _sandbox(name: str, home: Home, progress: Callable[[str], None]) -> Row:
    """A real run: the network of the sandbox, name resolution, the run's CA, the proxy, all at once."""
    import asyncio

    import moat.runtime
    from moat.cli.demo import interpreter
    from moat.cli.stage import stage

    title = f"sandbox ({name})"
    python, mounts = interpreter(name)
    errors = b""
    try:
        with stage(home, [_HOST]) as world:
            async with (
                asyncio.timeout(_PATIENCE),
                moat.runtime.start(
                    [*python, "-c", _FETCH, _HOST],
                    workspace=world.workspace,
                    runtime=name,
                    mounts=mounts,
                    home=world.home,
                    progress=progress,
                ) as run,
            ):
                async for output in run.output():
                    errors += output.data if output.stream == "stderr" else b""
                status = await run.wait()
            requests = len(world.origin.received)
    except MoatError as error:
        return Row(title, "fail", str(error), error.hint or "")
    except TimeoutError:
        return Row(
            title,
            "fail",
            f"nothing came of it in {_PATIENCE:.0f} s",
            f"try `moat run --runtime {name} -- true`",
        )
    if status == 0 and requests == 2:
        return Row(
            title, "ok", "TLS through the proxy, and captured without it, with the system's trust store"
        )
    last = errors.decode(errors="replace").strip().splitlines()[-1:] or [
        f"status {status}, {requests} requests"
    ]
    return Row(title, "fail", last[0], "moat demo shows what works and what does not")


def _keyring(home: Home) -> Row:
    from moat.errors import VaultError
    from moat.vault.index import read_index
    from moat.vault.oskeyring import KeyringStore

    index = read_index(home.credentials / "index.json")
    stores = {row.ref.store for row in index.rows.values() if row.ref}
    choice = os.environ.get("MOAT_KEYRING_BACKEND") or index.store
    if choice == "file" and "keyring" not in stores:
        return Row("keyring", "ok", f"not used: sealed files in {home.credentials} were chosen")
    store = KeyringStore("doctor", deadline=_KEYRING_DEADLINE)
    try:
        store.open(probe=True)
    except VaultError as error:
        needed = "keyring" in stores
        return Row("keyring", "fail" if needed else "warn", str(error), error.hint or "")
    return Row("keyring", "ok", f"{store.location('')}: written, read back, deleted")


def _grants(home: Home) -> Row:
    import datetime as dt

    from moat.vault import open_vault

    stored = open_vault(home).list()
    expired = [info.name for info in stored if info.expired(dt.datetime.now(dt.UTC))]
    if expired:
        return Row("grants", "warn", f"expired: {', '.join(expired)}", f"moat grant {expired[0]}")
    if not stored:
        return Row("grants", "warn", "no credential is stored", "moat grant anthropic")
    return Row("grants", "ok", ", ".join(f"{info.name} ({info.kind})" for info in stored))


def _claude(*, needed: bool) -> Row:
    """Only embedded sandboxes run the host's Claude Code; images bring their own."""
    from moat.errors import StartError
    from moat.runtime.agents.claude_binary import find_claude

    if not needed:
        return Row("claude", "ok", "not needed on this machine: Docker images bring their own")
    try:
        program = find_claude(Path.home())
    except StartError as error:
        return Row("claude", "warn", str(error), error.hint or "")
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=30, check=False, cwd="/"
    )
    if done.returncode:
        return Row(
            "claude", "fail", f"{program} does not start: {done.stderr.strip()[-200:]}", "install it again"
        )
    return Row("claude", "ok", f"{done.stdout.strip()}, {program}")


def _show(row: Row) -> None:
    live = sys.stdout.isatty() and "NO_COLOR" not in os.environ and not dumb()
    mark = f"\x1b[{_COLOURS[row.status]}m{row.status:<4}\x1b[0m" if live else f"{row.status:<4}"
    first, *more = _wrapped(row.detail)
    emit(f"{mark}  {row.name:<19} {first}")
    for line in (*more, *(line for fix in row.fix.splitlines() for line in _wrapped(f"fix: {fix}"))):
        emit(f"{'':<{_MARGIN}}{line}")


def _wrapped(text: str) -> list[str]:
    """The lines of `text`, on a terminal as short as fits beside the names; words stay whole."""
    lines = text.splitlines() or [""]
    if not sys.stdout.isatty():
        return lines
    import textwrap

    from moat.cli.display import size

    room = max(size().columns - _MARGIN, 20)
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]
    ]
