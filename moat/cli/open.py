"""`moat open [run] [endpoint]`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from moat import surroundings
from moat.cli.output import emit, emit_json, say
from moat.cli.parser import Parser
from moat.errors import MoatError
from moat.paths import Home
from moat.runtime.endpoints import spawn
from moat.runtime.endpoints.names import Place
from moat.runtime.known import all_runs, find, workspaces
from moat.runtime.records import RunRecord


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat open",
        description="Open an endpoint of a run in the browser. Without a run: the only one that has any, "
        "or the page of all; without an endpoint: the only one, or the page of the run.",
    )
    parser.add_argument("run", nargs="?", help="name or id")
    parser.add_argument("endpoint", nargs="?", help="a name under `ports` in agent.yaml")
    parser.add_argument("--print", action="store_true", dest="print_only", help="print the address instead")
    parser.add_argument("--json", action="store_true", help="print all addresses as JSON")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    surroundings.leave(*workspaces(home))
    runs = [find(home, options.run)] if options.run else _with_endpoints(home)
    if options.run and not runs[0].endpoints:
        raise _without(runs[0])
    if options.json:
        emit_json({run.name: dict(run.endpoints) for run in runs})
        return 0
    url = _choose(home, runs, options.endpoint)
    if options.print_only or not _show(url):
        emit(url)
    return 0


def _with_endpoints(home: Home) -> list[RunRecord]:
    runs = [run for run in all_runs(home) if run.endpoints and not run.state.ended]
    if not runs:
        raise MoatError("no run has endpoints", hint="`ports: {web: 3000}` in agent.yaml, or --port web=3000")
    return runs


def _without(run: RunRecord) -> MoatError:
    if run.state.ended:
        return MoatError(f"{run.name} has ended ({run.state})", hint=f"moat logs {run.id}")
    return MoatError(f"{run.name} has no endpoints", hint="`ports: {web: 3000}` in agent.yaml, and a new run")


def _choose(home: Home, runs: list[RunRecord], endpoint: str | None) -> str:
    port = spawn.port_of(home)
    if port is None:
        raise MoatError(
            "the gateway of endpoints is not running", hint="a run starts it again within seconds"
        )
    if len(runs) > 1:
        return Place().url(port)
    (run,) = runs
    if endpoint is not None and endpoint not in run.endpoints:
        raise MoatError(f"{run.name} has no endpoint {endpoint!r}", hint=f"it has {', '.join(run.endpoints)}")
    if endpoint is None and len(run.endpoints) == 1:
        (endpoint,) = run.endpoints
    return Place(run.name, endpoint).url(port)


def _show(url: str) -> bool:
    """Open it in a browser with a window; False when there is none to be had here."""
    if os.environ.get("BROWSER"):
        from moat.cli import browser  # knows the forms that the variable may have

        return browser.show(url)
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    if sys.platform != "darwin" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        say("there is no screen here to open a browser on")
        return False
    path = shutil.which(opener)
    if path is None:
        say(f"{opener} is missing, so no browser can be opened")
        return False
    quiet = subprocess.DEVNULL
    return (
        subprocess.run([path, url], stdin=quiet, stdout=quiet, stderr=quiet, check=False, cwd="/").returncode
        == 0
    )
