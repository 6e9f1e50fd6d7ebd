"""Credentials that are kept elsewhere: what is asked, how often, and that a place which fails is an error.

`op` and `aws` are programs of the suite that answer as the real ones do; everything else is real.

Seen to fail: without the check of `_checked` an empty answer is a credential; with `shell=True` in place of words the
file is made; without `_kill` the grandchild lives on; without the lock of `credential` the place is asked five times;
without `_WITHHELD` the passphrase is in the program's environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from moat.errors import GrantError, UsageError
from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.vault import Vault, dynamic as dynamic_module, open_vault, resolve as resolve_module
from moat.vault.dynamic import DynamicCredentials
from moat.vault.origin import Origin, parse_life
from moat.vault.providers import again
from moat.vault.resolve import LIMIT, resolve
from tests.vault.conftest import NOW

pytestmark = pytest.mark.anyio
Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes a program on PATH."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")

    def make(name: str, script: str) -> Path:
        path = place / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


# --- what can be said ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("op://Private/GitHub/token", ["op", "read", "--no-newline", "op://Private/GitHub/token"]),
        ("op://My vault/an item/a section/field", ["op", "read", "--no-newline", "op://My vault/an item/a section/field"]),
        ("env://GITHUB_TOKEN", ["GITHUB_TOKEN"]),
    ],
)  # fmt: skip
def test_a_reference(text: str, words: list[str]) -> None:
    assert Origin.reference(text).words == words


def test_a_parameter_of_aws_with_and_without_its_region() -> None:
    here, there = (
        Origin.reference("ssm:///team/token").words,
        Origin.reference("ssm://eu-west-1/team/token").words,
    )
    assert here[:6] == ["aws", "ssm", "get-parameter", "--with-decryption", "--name", "/team/token"]
    assert there == [*here, "--region", "eu-west-1"]


@pytest.mark.parametrize(
    "text",
    [
        "", "token", "op://vault/item", "op:///x/y", "op://a/b/c/d/e", "op://a/b\n/c", "env://", "env://A-B", "env://A B",
        "ssm://", "ssm:///", "ssm://eu-west-1", "ssm:///a b", "ssm:///a;id", "file:///etc/passwd", "https://x/y", "-h",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError, match="no place that Moat knows"):
        Origin.reference(text)


@pytest.mark.parametrize(
    ("text", "problem"), [("", "empty"), ("   ", "empty"), ("a 'b", "no closing quotation")]
)
def test_what_is_no_command(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Origin.command(text)


def test_a_time_to_live() -> None:
    assert [parse_life(text) for text in ("5s", "15m", "24h")] == [5, 900, 86400]
    for text in ("", "4s", "25h", "1.5h", "15", "-5m", "0s", "1d", "\uff19m"):
        with pytest.raises(UsageError):
            parse_life(text)


def test_what_is_stored_is_what_was_said() -> None:
    for origin in (Origin.reference("op://a/b/c", 60), Origin.command("sh -c 'echo $X'", 900)):
        info = CredentialInfo("linear", CredentialKind.TOKEN, ("api.linear.app",), NOW, None, origin.metadata)
        assert Origin.of(info) == origin
    assert again(info) == """moat grant linear --command 'sh -c '"'"'echo $X'"'"''"""
    assert Origin.of(CredentialInfo("x", CredentialKind.TOKEN, (), NOW, None, {"source": "stdin"})) is None


# --- asking --------------------------------------------------------------------------------------------


async def test_programs_are_asked_as_they_want_to_be(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("op", 'test "$*" = "read --no-newline op://My vault/item/field" && printf from-op')
    program("aws", 'test "$5 $7 $9" = "/team/token Parameter.Value text" && echo from-aws')
    monkeypatch.setenv("MY_TOKEN", " from-env\n")
    for text, value in [
        ("op://My vault/item/field", "from-op"),
        ("ssm:///team/token", "from-aws"),
        ("env://MY_TOKEN", "from-env"),
    ]:
        assert await resolve(Origin.reference(text)) == Secret(value)


async def test_a_command_is_words_and_no_shell(program: Program, tmp_path: Path, home: Path) -> None:
    program("tool", 'echo "$#:$1:$2" | tr " " _')
    command = f"tool '$HOME;id' >{tmp_path}/made"
    assert await resolve(Origin.command(command)) == Secret(f"2:$HOME;id:>{tmp_path}/made")
    assert not (tmp_path / "made").exists()
    # Nothing is found by way of a workspace.
    program("where", "pwd")
    assert await resolve(Origin.command("where")) == Secret(str(home))


async def test_the_way_to_the_vault_is_nobodys_business(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOAT_PASSPHRASE", "PASSPHRASE-OF-THE-VAULT")
    program("tool", "env | grep -c PASSPHRASE; true")
    assert await resolve(Origin.command("tool")) == Secret("0")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("true", "gave no credential: it is empty"),
        ("echo; echo", "gave no credential: it is empty"),
        ("echo one; echo two", "gave more than one line"),
        ("printf 'a\\033[1mb'", "gave more than one line, or characters"),
        ("echo SECRET-MARK; echo SECRET-MARK >&2; exit 3", "failed with status 3$"),
        ("echo SECRET-MARK >&2; exit 3", "failed with status 3$"),
        ("kill -9 $$", "failed with status -9$"),
        ("yes", f"gave more than {LIMIT} bytes"),
        ("yes >&2 & sleep 0.2; kill $!; echo token; exit 1", "failed with status 1$"),
    ],
)
async def test_a_command_that_gives_nothing_usable(program: Program, script: str, message: str) -> None:
    program("tool", script)
    with pytest.raises(GrantError, match=message) as caught:
        await resolve(Origin.command("tool --secret-argument"))
    text = f"{caught.value} {caught.value.hint}"
    assert "SECRET-MARK" not in text
    assert "secret-argument" not in text


async def test_what_op_says_is_passed_on(program: Program) -> None:
    program("op", r"echo first >&2; printf '[ERROR] \033]0;x\007no item x in vault\n' >&2; exit 1")
    with pytest.raises(
        GrantError, match=r"^op://a/b/c failed with status 1: \[ERROR\] \]0;xno item x in vault$"
    ):
        await resolve(Origin.reference("op://a/b/c"))


async def test_what_op_gave_is_not_passed_on_as_its_error(program: Program) -> None:
    """Seen to fail without the look at `quotes`."""
    program("op", "echo SECRET-MARK; echo 'cannot lock SECRET-MARK in memory' >&2; exit 1")
    with pytest.raises(GrantError, match=r"^op://a/b/c failed with status 1$"):
        await resolve(Origin.reference("op://a/b/c"))


async def test_what_is_not_there(program: Program) -> None:
    del program
    for origin, message in [
        (Origin.reference("op://a/b/c"), "op is not installed"),
        (Origin.reference("ssm:///a"), "aws is not installed"),
        (Origin.command("nothing-like-it x"), "nothing-like-it is not installed"),
        (Origin.reference("env://NOT_SET"), "the variable NOT_SET is not set"),
    ]:
        with pytest.raises(GrantError, match=message) as caught:
            await resolve(origin)
        assert caught.value.hint


async def test_a_place_that_does_not_answer(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the program started ends with it."""
    monkeypatch.setattr(resolve_module, "DEADLINE", 0.5)
    program("tool", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    before = time.monotonic()
    with pytest.raises(GrantError, match="did not answer within"):
        await resolve(Origin.command("tool"))
    assert time.monotonic() - before < 30
    pid = int((tmp_path / "pid").read_text())
    with anyio.fail_after(5):
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            await anyio.sleep(0.02)


# --- in a run ------------------------------------------------------------------------------------------


class Rest:
    def __init__(self, vault: Vault) -> None:
        self.credential = vault.credential

    def rejected(self, name: str) -> bool:
        return name == "anthropic"


class Place:
    """A vault whose `linear` is what a counting program prints."""

    def __init__(self, home: Home, program: Program, tmp_path: Path) -> None:
        self.vault = open_vault(home)
        self.value, self.count = tmp_path / "value", tmp_path / "count"
        self.value.write_text("first")
        program("tool", f"echo x >> {self.count}; sleep 0.05; cat {self.value}")
        self.grant()
        self.asked: list[tuple[str, str, str]] = []
        self.source = DynamicCredentials(
            self.vault, Rest(self.vault), lambda *asked: self.asked.append(asked)
        )

    def grant(self, life: int = 900) -> None:
        metadata = Origin.command("tool", life).metadata
        self.vault.note(
            CredentialInfo("linear", CredentialKind.TOKEN, ("api.linear.app",), NOW, None, metadata)
        )

    @property
    def times(self) -> int:
        return len(self.count.read_text().split()) if self.count.exists() else 0

    async def now(self) -> str:
        return (await self.source.credential("linear")).secret.reveal()


@pytest.fixture
def place(sealed: Home, program: Program, tmp_path: Path) -> Place:
    return Place(sealed, program, tmp_path)


async def test_it_is_asked_once_for_all_and_again_when_its_time_is_over(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.source.prepare(["linear"])
    assert place.times == 1
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(place.now)
    assert place.times == 1
    place.value.write_text("second")
    assert await place.now() == "first"
    late = time.monotonic() + 901
    monkeypatch.setattr(dynamic_module.time, "monotonic", lambda: late)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(place.now)
    assert (await place.now(), place.times) == ("second", 2)
    assert place.asked == [("linear", "`tool`", "")] * 2


async def test_one_that_fails_is_an_error_and_not_asked_again_at_once(place: Place) -> None:
    place.value.unlink()
    for _ in range(3):
        with pytest.raises(GrantError, match="linear: `tool` failed with status 1"):
            await place.now()
    assert place.times == 1
    with pytest.raises(GrantError):
        await place.source.prepare(["linear"])


async def test_one_that_was_not_taken_is_asked_for_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await place.now() == "first"
    place.value.write_text("second")
    place.source.rejected("linear")
    assert await place.now() == "first"  # it was asked for just now: not for every 401
    later = time.monotonic() + 16
    monkeypatch.setattr(dynamic_module.time, "monotonic", lambda: later)
    place.source.rejected("linear")
    assert await place.now() == "second"
    assert place.source.rejected("anthropic"), "others are not its business"


async def test_what_is_granted_and_revoked_meanwhile_counts(place: Place) -> None:
    assert await place.now() == "first"
    info = CredentialInfo("linear", CredentialKind.TOKEN, ("api.linear.app",), NOW)
    place.vault.put(Credential(info, Secret("stored")))
    assert await place.now() == "stored"
    place.grant(60)
    assert (await place.now(), place.times) == ("first", 2)
    place.vault.delete("linear")
    with pytest.raises(GrantError, match="no credential 'linear'"):
        await place.now()
    assert not [path for path in place.vault.directory.iterdir() if b"first" in path.read_bytes()]
