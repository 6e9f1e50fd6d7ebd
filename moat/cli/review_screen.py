"""The list of changes on a terminal: choose one, read its patch, take it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moat.cli.changes import Sides, line, patch_lines
from moat.cli.output import Progress, say
from moat.cli.snapshot_place import Place
from moat.cli.snapshot_restore import bring_back, refuse_other
from moat.errors import MoatError
from moat.runtime.snapshots.diff import Change, count
from moat.runtime.snapshots.pending import read_pending
from moat.runtime.snapshots.store import Snapshot

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_KEYS = "up/down choose · Enter patch · r take back · q leave"
_PATCH_KEYS = "up/down/space scroll · r take back · q back"
_STYLES = {"+": "ansigreen", "-": "ansired", "@": "ansicyan"}
_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -20, "pagedown": 20, "space": 20}


class _Silent(Progress):
    def show(self, text: str) -> None:
        """The screen is taken."""


class ReviewScreen:
    """A list; over it the patch of one change; below a line of what the keys do or what happened."""

    def __init__(self, place: Place, base: Snapshot, changes: list[Change], sides: Sides) -> None:
        self._place = place
        self._base = base
        self._changes = changes
        self._sides = sides
        self._at = 0
        self._top = 0  # first line of the patch on the screen
        self._patch: list[str] | None = None
        self._asking = False
        self._word = ""
        self._reverted = 0

    def run(self) -> int:
        self._application().run()
        if self._reverted:
            say(f"{self._reverted} taken back; `moat snapshot list` shows the safety snapshots")
        return 0

    def _application(self) -> Application[None]:
        from prompt_toolkit.application import Application
        from prompt_toolkit.layout import HSplit, Layout, Window
        from prompt_toolkit.layout.controls import FormattedTextControl

        body = Window(FormattedTextControl(self._body, show_cursor=False), wrap_lines=False)
        top = Window(FormattedTextControl(self._title), height=1)
        bottom = Window(FormattedTextControl(self._bottom), height=1, style="reverse")
        return Application(
            layout=Layout(HSplit([top, body, bottom])), key_bindings=self._keys(), full_screen=True
        )

    # --- what is shown ---------------------------------------------------------------------------

    def _height(self) -> int:
        from prompt_toolkit.application import get_app

        return max(1, get_app().output.get_size().rows - 2)

    def _title(self) -> StyleAndTextTuples:
        name = self._place.run.name if self._place.run else self._base.id
        return [("bold", f"{name}: {count(self._changes)}")]

    def _body(self) -> StyleAndTextTuples:
        height = self._height()
        if self._patch is not None:
            shown = self._patch[self._top : self._top + height]
            return [(_STYLES.get(text[:1], ""), text + "\n") for text in shown]
        first = max(0, min(self._at - height // 2, len(self._changes) - height))
        return [
            ("reverse" if first + number == self._at else "", line(change) + "\n")
            for number, change in enumerate(self._changes[first : first + height])
        ]

    def _bottom(self) -> StyleAndTextTuples:
        if self._asking:
            return [("", f"Take back {line(self._changes[self._at])}? [y/N]")]
        return [("", self._word or (_KEYS if self._patch is None else _PATCH_KEYS))]

    # --- what keys do ----------------------------------------------------------------------------

    def _keys(self) -> KeyBindings:
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        asking = Condition(lambda: self._asking)

        for name, step in _STEPS.items():
            keys.add(name, filter=~asking)(self._mover(step))

        @keys.add("enter", filter=~asking)
        def _open(_event: KeyPressEvent) -> None:
            self._open()

        @keys.add("r", filter=~asking)
        def _ask(_event: KeyPressEvent) -> None:
            self._asking, self._word = bool(self._changes), ""

        @keys.add("q", filter=~asking)
        @keys.add("escape", filter=~asking, eager=True)
        @keys.add("c-c")
        def _leave(event: KeyPressEvent) -> None:
            if self._patch is None or event.key_sequence[0].key == "c-c":
                event.app.exit()
            self._patch = None

        @keys.add("<any>", filter=asking)
        def _answer(event: KeyPressEvent) -> None:
            self._asking = False
            if event.data in {"y", "Y"}:
                self._take_back()

        return keys

    def _mover(self, step: int) -> Callable[[KeyPressEvent], None]:
        def move(_event: KeyPressEvent) -> None:
            self._word = ""
            if self._patch is None:
                self._at = max(0, min(len(self._changes) - 1, self._at + step))
            else:
                self._top = max(0, min(len(self._patch) - self._height(), self._top + step))

        return move

    def _open(self) -> None:
        if not self._changes or self._patch is not None:
            return
        try:
            self._patch, self._top = patch_lines(self._sides.patch(self._changes[self._at])), 0
        except MoatError as error:
            self._word = str(error)

    def _take_back(self) -> None:
        change = self._changes[self._at]
        try:
            refuse_other(read_pending(self._place.store), (change.path,))
            done = bring_back(self._place, self._base, (change.path,), progress=_Silent())
        except MoatError as error:
            self._word = str(error)
            return
        if done.left:
            self._word = f"left alone: {done.left[0].why}"
            return
        del self._changes[self._at]
        self._at = max(0, min(self._at, len(self._changes) - 1))
        self._patch = None
        self._reverted += 1
        self._word = f"taken back: {line(change)}"
