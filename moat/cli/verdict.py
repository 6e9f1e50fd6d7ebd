"""What a key says about a host that a run asks for: yes or no, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from moat.dataclass import dataclass
from moat.errors import MoatError

if TYPE_CHECKING:
    from moat.runtime.questions import Scope


@dataclass(frozen=True, slots=True)
class Verdict:
    allow: bool
    scope: Scope = "run"
    seconds: int = 0  # of scope `for`

    def note(self, host: str) -> str:
        """Write an `always` into the user's configuration. Returns what prevents it, or nothing."""
        if self.scope != "always":
            return ""
        from moat.config.remember import remember  # ruamel.yaml is needed for this alone
        from moat.paths import Home

        home = Home.from_environment()
        try:
            remember(home, host, allow=self.allow)
        except MoatError as error:
            return str(error)
        except OSError as error:
            return f"{home.config_file} cannot be written: {error.strerror}"
        return ""


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with its host: what is asked may be another question by the time it is carried out."""

    host: str  # `host:port`
    verdict: Verdict


# By the key of the menu. `a` and `n` are those of the row on the screen.
BY_KEY: Mapping[str, Verdict] = MappingProxyType({
    "a": Verdict(allow=True),
    "o": Verdict(allow=True, scope="once"),
    "m": Verdict(allow=True, scope="for", seconds=600),
    "A": Verdict(allow=True, scope="always"),
    "n": Verdict(allow=False),
    "N": Verdict(allow=False, scope="always"),
})  # fmt: skip

# By the word typed in answer to a line.
BY_WORD: Mapping[bytes, Verdict] = MappingProxyType({
    b"y": BY_KEY["a"],
    b"yes": BY_KEY["a"],
    b"once": BY_KEY["o"],
    b"10m": BY_KEY["m"],
    b"always": BY_KEY["A"],
    b"n": BY_KEY["n"],
    b"no": BY_KEY["n"],
    b"never": BY_KEY["N"],
})  # fmt: skip
