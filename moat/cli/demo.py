"""`moat demo`: a real sandbox, proxy and TLS origin; what each side holds; every way out tried.

The run is an ordinary one. Only its stage is made up: credentials that were drawn a moment ago, and an
origin on loopback that plays the hosts they are for (`moat.cli.stage`).
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moat.cli.demo_view import as_json, shorten, show
from moat.cli.parser import Parser
from moat.dataclass import dataclass
from moat.errors import StartError
from moat.paths import Home

if TYPE_CHECKING:
    from moat.cli.stage import Stage
    from moat.proxy.events import ExchangeFinished
    from moat.runtime.sandbox import Mount

STRANGER = "collector.example"  # a host that no credential is bound to


@dataclass(frozen=True, slots=True)
class Holding:
    """A made-up credential, and how a program in the sandbox finds its stand-in."""

    grant: str
    kind: str
    host: str
    secret: str
    shown: str  # where the stand-in is, for people
    source: dict[str, Any]  # the same for the probe
    proxy: bool  # the probe asks the proxy; else it just connects, and is captured


@dataclass(frozen=True, slots=True)
class Check:
    """One claim and whether it is true; `detail` is what was seen."""

    group: str  # `credentials`, `echo`, `ways out`, `record`
    claim: str
    holds: bool
    detail: str


@dataclass(slots=True)
class Report:
    runtime: str
    run_id: str = ""
    seconds: float = 0.0
    sides: list[dict[str, str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat demo", description="Prove the isolation on this machine.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--runtime", choices=("embedded", "docker"), default="embedded")
    options = parser.parse_args(argv)

    import asyncio

    from moat.cli.stage import stage

    started = time.monotonic()
    holdings = draw()
    hosts = [*(holding.host for holding in holdings), STRANGER]
    with stage(Home.from_environment(), hosts) as world:
        _store(world, holdings)
        report = asyncio.run(play(world, holdings, options.runtime))
    report.seconds = time.monotonic() - started
    if options.json:
        as_json(report)
    else:
        show(report)
    return 0 if report.holds else 1


def draw() -> tuple[Holding, ...]:
    """Credentials that nobody has ever used, in the shapes of real ones."""
    return (
        Holding(
            "anthropic",
            "oauth",
            "api.anthropic.com",
            f"sk-ant-oat01-{secrets.token_urlsafe(60)}",
            "~/.claude/.credentials.json",
            {"file": "~/.claude/.credentials.json", "keys": ["claudeAiOauth", "accessToken"]},
            proxy=True,
        ),
        Holding(
            "github",
            "token",
            "api.github.com",
            f"ghp_{secrets.token_hex(18)}",
            "$GH_TOKEN",
            {"variable": "GH_TOKEN"},
            proxy=False,
        ),
    )


def _store(world: Stage, holdings: Sequence[Holding]) -> None:
    import datetime as dt

    from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
    from moat.vault import open_vault
    from moat.vault.providers import entry

    vault = open_vault(world.home)
    for holding in holdings:
        info = CredentialInfo(
            holding.grant, CredentialKind(holding.kind), entry(holding.grant).hosts, dt.datetime.now(dt.UTC)
        )
        vault.put(Credential(info, Secret(holding.secret)))


async def play(world: Stage, holdings: Sequence[Holding], runtime: str) -> Report:
    """Run the probe in a sandbox and check every claim against what both sides saw."""
    import moat.runtime

    ways = ways_out(world)
    _write_probe(world.workspace, holdings, ways)
    python, mounts = interpreter(runtime)
    report = Report(runtime)
    printed = {"stdout": b"", "stderr": b""}
    async with moat.runtime.start(
        [*python, "/workspace/probe.py", "/workspace/plan.json"],
        workspace=world.workspace,
        name="demo",
        grants=[holding.grant for holding in holdings],
        runtime=runtime,
        mounts=mounts,
        home=world.home,
    ) as run:
        report.run_id = run.id
        async for output in run.output():
            printed[output.stream] += output.data
        status = await run.wait()
    if status:
        text = printed["stderr"].decode(errors="replace").strip()
        raise StartError(f"the probe ended with status {status}: {text[-500:]}")
    seen = json.loads(printed["stdout"])
    report.sides = list(_sides(world, holdings, seen))
    report.checks += _credentials(world, holdings, seen)
    report.checks += _ways(world, ways, seen)
    report.checks += _record(world.home.run(run.id), run.exchanges(), holdings)
    return report


def _write_probe(workspace: Path, holdings: Sequence[Holding], ways: Sequence[dict[str, Any]]) -> None:
    requests = [
        {"host": h.host, "header": "authorization", "prefix": "Bearer ", "source": h.source, "proxy": h.proxy}
        for h in holdings
    ]
    plan = {"requests": requests, "ways": list(ways)}
    (workspace / "plan.json").write_text(json.dumps(plan))
    (workspace / "probe.py").write_bytes(files("moat.cli").joinpath("demo_probe.py").read_bytes())


def interpreter(runtime: str) -> tuple[tuple[str, ...], tuple[Mount, ...]]:
    """A Python that the sandbox can run, and the mounts it needs for that.

    An image has its own. The embedded sandbox has the host's /usr; where there is no Python in it (pyenv,
    uv, conda), the one that runs Moat is shown to the sandbox, read-only.
    """
    from moat.runtime.sandbox import Mount

    if runtime != "embedded":
        return ("python3",), ()
    found = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if found:
        return (found,), ()
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return (f"/opt/python/bin/{name}",), (Mount.of(Path(sys.base_prefix), "/opt/python", read_only=True),)


def ways_out(world: Stage) -> list[dict[str, Any]]:
    """What hostile code would try. `text` is for people; the rest is for the probe."""
    from moat.cli.stage import host_addresses

    port = world.canary.port
    ways: list[dict[str, Any]] = []
    for address in host_addresses():
        ways += [
            {
                "kind": "tcp",
                "host": address,
                "port": port,
                "text": f"TCP to a service on {address}",
            },
            {
                "kind": "udp",
                "host": address,
                "port": port,
                "text": f"UDP to a service on {address}",
            },
            {
                "kind": "connect",
                "host": address,
                "port": port,
                "text": f"a service on {address}, through the proxy",
            },
        ]
    holding = {"header": "authorization", "prefix": "Bearer ", "source": {"variable": "GH_TOKEN"}}
    return [
        *ways,
        {
            "kind": "connect",
            "host": "localhost",
            "port": port,
            "text": "a service on localhost, through the proxy",
        },
        {"kind": "tcp", "host": "1.1.1.1", "port": 443, "text": "TCP to the internet, past the proxy"},
        {"kind": "udp", "host": "9.9.9.9", "port": 53, "text": "DNS query to an outside resolver"},
        {"kind": "tcp", "host": "169.254.169.254", "port": 80, "text": "cloud metadata address, directly"},
        {
            "kind": "absolute",
            "url": "http://169.254.169.254/latest/meta-data/",
            "text": "cloud metadata address, through the proxy",
        },
        {"kind": "carry", "host": STRANGER, **holding, "text": f"the stand-in to another host, {STRANGER}"},
        {"kind": "file", "path": "/var/run/docker.sock", "text": "the container engine's socket"},
    ]


def _sides(world: Stage, holdings: Sequence[Holding], seen: dict[str, Any]) -> Iterator[dict[str, str]]:
    for holding, request in zip(holdings, seen["requests"], strict=True):
        got = next((r for r in world.origin.received if r.host == holding.host), None)
        yield {
            "grant": holding.grant,
            "host": holding.host,
            "where": holding.shown,
            "route": "through HTTPS_PROXY" if holding.proxy else "plain connect, captured",
            "sandbox": str(request.get("sent", {}).get("authorization", request.get("detail", ""))),
            "origin": got.headers.get("authorization", "(no such header)") if got else "(nothing arrived)",
            "echo": _echoed(request),
        }


def _echoed(request: dict[str, Any]) -> str:
    try:
        return str(json.loads(request["answer"]["body"])["headers"]["authorization"])
    except (KeyError, ValueError):
        return str(request.get("detail", "(no answer)"))


def _credentials(world: Stage, holdings: Sequence[Holding], seen: dict[str, Any]) -> Iterator[Check]:
    heap = zlib.decompress(base64.b64decode(seen["look"]["heap"]))
    looked = f"{seen['look']['files']} files, environments and command lines read"
    yield Check("credentials", "the agent is not root in the sandbox", seen["uid"] != 0, f"uid {seen['uid']}")
    for holding, request in zip(holdings, seen["requests"], strict=True):
        stand_in = str(request.get("sent", {}).get("authorization", "")).removeprefix("Bearer ")
        got = [r.headers.get("authorization") for r in world.origin.received if r.host == holding.host]
        found = stand_in != "" and stand_in.encode() in heap
        hidden = not any(form in heap for form in _forms(holding.secret))
        yield Check(
            "credentials",
            f"{holding.grant}: the sandbox holds a stand-in only",
            found and hidden,
            looked if found else "no stand-in was found",
        )
        yield Check(
            "credentials",
            f"{holding.grant}: the origin got the credential",
            got == [f"Bearer {holding.secret}"],
            f"{len(got)} request(s) at {holding.host}",
        )
        answer = json.dumps(request.get("answer", {})).encode()
        clean = not any(form in answer for form in _forms(holding.secret))
        echoed = request.get("answer", {}).get("status") == 200
        yield Check(
            "echo",
            f"{holding.grant}: an origin that echoes it cannot hand it back",
            echoed and clean,
            f"what came back: {shorten(_echoed(request))}",
        )


def _forms(secret: str) -> tuple[bytes, ...]:
    """The secret as it might lie about: as it is, hex, and base64 at each of the three alignments."""
    raw = secret.encode()
    shifted = (base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3))
    return (raw, raw.hex().encode(), *shifted)


def _ways(world: Stage, ways: Sequence[dict[str, Any]], seen: dict[str, Any]) -> Iterator[Check]:
    for way, outcome in zip(ways, seen["ways"], strict=True):
        # Through the proxy, only Moat's own refusal counts: a broken proxy would refuse everything as well.
        explained = way["kind"] not in {"connect", "absolute", "carry"} or bool(outcome.get("denial"))
        refused = not outcome["reached"] and explained
        yield Check("ways out", way["text"], refused, _reason(outcome))
    touched = world.canary.touched
    yield Check(
        "ways out",
        "nothing arrived at the services of this machine",
        not touched,
        ", ".join(touched) or "0 packets",
    )
    strays = [r.host for r in world.origin.received if r.host == STRANGER]
    yield Check("ways out", f"nothing arrived at {STRANGER}", not strays, f"{len(strays)} requests")


def _reason(outcome: dict[str, Any]) -> str:
    """Why a way was refused, in few words: Moat's reason, or the kernel's."""
    try:
        return str(json.loads(outcome["denial"])["error"]).removeprefix("moat refused this request: ")
    except (KeyError, ValueError):
        return str(outcome["detail"])


def _record(
    directory: Path, exchanges: Sequence[ExchangeFinished], holdings: Sequence[Holding]
) -> Iterator[Check]:
    used = {grant for exchange in exchanges for grant in exchange.grants}
    refused = sum(exchange.denial is not None for exchange in exchanges)
    yield Check(
        "record",
        "every exchange is on record, with the grant that it used",
        used == {holding.grant for holding in holdings} and refused > 0,
        f"{len(exchanges)} exchanges, {refused} refused",
    )
    data = b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())
    clean = bool(data) and not any(form in data for h in holdings for form in _forms(h.secret))
    yield Check("record", "no credential is in what the run left on disk", clean, f"{len(data)} bytes read")
