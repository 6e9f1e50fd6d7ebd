"""`moat top`: living runs, the hosts they talk to and what they were refused, as it happens."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moat.cli.output import clock, dumb, emit, emit_json, safe, table
from moat.cli.parser import Parser
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import known
from moat.runtime.records import RunRecord, describe_age
from moat.runtime.tally import Sums, Tally, host_of, in_words

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_EVERY = 1.0  # seconds between two looks
_HOSTS = 200  # more fit no screen
_KEYS = "q quits"


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat top", description="Watch living runs: hosts, requests, bytes, denials.")
    parser.add_argument("--once", action="store_true", help="print one look and exit")
    parser.add_argument("--json", action="store_true", help="print one look as JSON and exit")
    options = parser.parse_args(argv)
    screen = Screen(Home.from_environment())
    screen.look()
    if options.json:
        emit_json(screen.to_json())
    elif options.once:
        emit("\n".join(screen.lines(rows=1000)))
    elif dumb() or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("moat top needs a terminal that can draw", hint="moat top --once, or --json")
    else:
        _application(screen).run()
    return 0


@dataclass
class Screen:
    """What is shown: text only, whatever a sandbox has sent."""

    home: Home
    runs: list[RunRecord] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)

    def look(self) -> None:
        """Read what has come since the last look."""
        self.runs = [run for run in known.all_runs(self.home) if not run.state.ended]
        old = self.tallies
        self.tallies = {
            run.id: old.get(run.id) or Tally(self.home.run(run.id) / "network.jsonl") for run in self.runs
        }
        for tally in self.tallies.values():
            tally.update()

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "id": run.id,
                "name": run.name,
                "state": run.state,
                **self.tallies[run.id].sums.to_json(),
                "hosts": {name: sums.to_json() for name, sums in self.tallies[run.id].hosts.items()},
                "asks": list(run.asks),
            }
            for run in self.runs
        ]

    def lines(self, rows: int, columns: int = 1000) -> list[str]:
        """At most `rows` lines: the runs, then hosts and denials in what room is left."""
        runs, hosts, denials = list(self._runs()), list(self._hosts()), list(self._denials())
        if not self.runs:
            return ["no run is alive"]
        room = max(0, rows - 4)  # two headings with a blank line before each
        shown = runs[: max(2, room // 2 + 1)]
        room -= len(shown)
        below = denials[-max(1, room // 3) :] if denials else []
        text = [*shown, "", *hosts[: max(2, room - len(below))]]
        text += ["", "DENIED", *below] if below else []
        return [line[:columns] for line in text[:rows]]

    def _runs(self) -> Iterator[str]:
        rows = [
            (run.name, run.state, describe_age(run.created_at), *_cells(self.tallies[run.id].sums))
            for run in self.runs
        ]
        yield from table(("RUN", "STATE", "AGE", *_HEADINGS), rows).splitlines()

    def _hosts(self) -> Iterator[str]:
        found = [
            (sums, name, run.name) for run in self.runs for name, sums in self.tallies[run.id].hosts.items()
        ]
        found.sort(key=lambda item: (-item[0].requests, *item[1:]))
        rows = [(safe(name), run, *_cells(sums)) for sums, name, run in found[:_HOSTS]]
        yield from table(("HOST", "RUN", *_HEADINGS), rows).splitlines()

    def _denials(self) -> Iterator[str]:
        found = [
            (str(exchange.get("ts", "")), run.name, exchange)
            for run in self.runs
            for exchange in self.tallies[run.id].denials
        ]
        for stamp, name, exchange in sorted(found, key=lambda item: item[0]):
            what = f"{exchange.get('method')} {host_of(exchange)}: {exchange['denial'].get('reason')}"
            yield safe(f"{clock(stamp)}  {name}  {what}")


_HEADINGS = ("REQUESTS", "DENIED", "FAILED", "UP", "DOWN")


def _cells(sums: Sums) -> tuple[str, ...]:
    return (
        f"{sums.requests:,}",
        f"{sums.denied:,}",
        f"{sums.failed:,}",
        in_words(sums.up),
        in_words(sums.down),
    )


def _application(screen: Screen) -> Application[None]:
    import asyncio

    from prompt_toolkit.application import Application
    from prompt_toolkit.layout import HSplit, Layout, Window
    from prompt_toolkit.layout.controls import FormattedTextControl

    def drawn() -> str:
        size = app.output.get_size()
        return "\n".join(screen.lines(size.rows - 1, size.columns))

    body = Window(FormattedTextControl(drawn, show_cursor=False), wrap_lines=False)
    foot = Window(FormattedTextControl(_KEYS), height=1, style="reverse")
    app: Application[None] = Application(
        layout=Layout(HSplit([body, foot])), key_bindings=_keys(), full_screen=True
    )

    async def watch() -> None:
        while True:
            await asyncio.sleep(_EVERY)
            await asyncio.to_thread(screen.look)
            app.invalidate()  # only what differs is drawn

    app.pre_run_callables.append(lambda: _begin(app, watch))
    return app


def _begin(app: Application[None], watch: Any) -> None:
    app.create_background_task(watch())


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("q")
    @keys.add("c-c")
    @keys.add("escape")
    def _quit(event: KeyPressEvent) -> None:
        event.app.exit()

    return keys
