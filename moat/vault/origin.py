"""Where a credential is kept when the vault does not keep it: a password manager, a program, a variable.

A grant of this kind stores no secret, only this reference. It is resolved on the host when a run starts, and
again when it was held for as long as the user allows.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Literal

from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.grants import CredentialInfo

_FROM, _TTL = "from", "ttl"  # in the metadata of a credential
_COMMAND = "command: "
LIFE = 900  # seconds that a credential is held, unless the user says otherwise
_LIVES = (5, 24 * 3600)
_UNITS = {"s": 1, "m": 60, "h": 3600}
_OP = re.compile(r"op://[^\s/]+( [^\s/]+)*(/[^\s/]+( [^\s/]+)*){2,3}")
_SSM = re.compile(r"ssm://(?P<region>[a-z0-9-]*)(?P<name>/[A-Za-z0-9_./-]+)")
_ENV = re.compile(r"env://(?P<name>[A-Za-z_][A-Za-z0-9_]*)")
_HINT = "op://vault/item/field, env://VARIABLE, ssm:///path or ssm://region/path; a program: --command"


@dataclass(frozen=True, slots=True)
class Origin:
    kind: Literal["op", "env", "ssm", "command"]
    text: str  # the reference as it was given; of a command its words
    life: int = LIFE  # seconds

    @classmethod
    def reference(cls, text: str, life: int = LIFE) -> Origin:
        """Read `op://…`, `env://…`, `ssm://…`. Raises UsageError."""
        if _OP.fullmatch(text):
            return cls("op", text, life)
        if _SSM.fullmatch(text):
            return cls("ssm", text, life)
        if _ENV.fullmatch(text):
            return cls("env", text, life)
        raise UsageError(f"--from {text[:200]!r} is no place that Moat knows", hint=_HINT)

    @classmethod
    def command(cls, text: str, life: int = LIFE) -> Origin:
        """A command line, in words as a shell splits them. Raises UsageError."""
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UsageError(
                f"--command cannot be read: {str(error).lower()}", hint="check its quotes"
            ) from None
        if not words:
            raise UsageError("--command is empty", hint="--command 'gh auth token'")
        return cls("command", text, life)

    @classmethod
    def of(cls, info: CredentialInfo) -> Origin | None:
        """Where a credential is kept; None: in the vault, or it has no secret. Raises UsageError."""
        text = info.metadata.get(_FROM)
        if text is None:
            return None
        try:
            life = int(info.metadata[_TTL])
        except (KeyError, ValueError):
            raise UsageError("what is stored of where it is kept is damaged", hint="grant it again") from None
        if text.startswith(_COMMAND):
            return cls.command(text.removeprefix(_COMMAND), life)
        return cls.reference(text, life)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What of it is stored with the credential."""
        return {_FROM: f"{_COMMAND if self.kind == 'command' else ''}{self.text}", _TTL: str(self.life)}

    @property
    def shown(self) -> str:
        """For messages and the journal. Arguments of a program may hold what is nobody's business."""
        return f"`{self.words[0]}`" if self.kind == "command" else self.text

    @property
    def flags(self) -> str:
        """The options of `moat grant` that say the same."""
        place = f"--{'command' if self.kind == 'command' else 'from'} {shlex.quote(self.text)}"
        return place if self.life == LIFE else f"{place} --ttl {self.life}s"

    @property
    def words(self) -> list[str]:
        """What is run to get it; of a variable its name alone."""
        if self.kind == "command":
            return shlex.split(self.text)
        if self.kind == "op":
            return ["op", "read", "--no-newline", self.text]
        if self.kind == "env":
            return [self.text.removeprefix("env://")]
        match = _SSM.fullmatch(self.text)
        assert match is not None
        words = ["aws", "ssm", "get-parameter", "--with-decryption", "--name", match["name"]]
        words += ["--query", "Parameter.Value", "--output", "text"]
        return [*words, "--region", match["region"]] if match["region"] else words


def parse_life(text: str) -> int:
    """Seconds of `90s`, `15m`, `12h`. Raises UsageError."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smh])", text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not _LIVES[0] <= seconds <= _LIVES[1]:
        raise UsageError(f"--ttl {text[:40]}: not from 5s to 24h", hint="e.g. --ttl 15m")
    return seconds
