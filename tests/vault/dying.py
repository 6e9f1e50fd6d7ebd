"""A process that dies, as by SIGKILL, right before the n-th thing that it changes on a disk or in a keyring.

`python -m tests.vault.dying NAME…` (functions of `os` that count) has everything imported, and forks for each death: a test may have many.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.vault import Vault, open_vault
from moat.vault.key import NewKey
from moat.vault.oskeyring import KeyringStore
from tests.conftest import REPOSITORY

DIED = 99


class Dying:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, step: int, action: str, *argv: str) -> bool:
        """Whether a process that was to do `action` has died at that step; else it has done it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([step, action, *argv]) + "\n")
        self._process.stdin.flush()
        status, said = json.loads(self._process.stdout.readline())
        assert status in {0, DIED}, said
        return bool(status)


@contextlib.contextmanager
def dying(*more: str) -> Iterator[Dying]:
    """In the environment of this moment. Files count when they get or lose their name, and at `more` of `os`."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.vault.dying", "link", "replace", "unlink", *more],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Dying(process)
        finally:
            process.kill()


# --- in the process ------------------------------------------------------------------------------------


def put(vault: Vault) -> None:
    info = CredentialInfo("anthropic", CredentialKind.OAUTH, ("new.example",), dt.datetime.now(dt.UTC))
    vault.put(Credential(info, Secret("new")))


def delete(vault: Vault, name: str) -> None:
    vault.delete(name)


def move(vault: Vault, to: Any) -> None:
    for info in vault.list():
        vault.move(info.name, to)


def moat(_: Vault, *argv: str) -> None:
    from moat.cli import vault

    assert vault.main(argv) == 0


def renew(vault: Vault, name: str) -> None:
    import anyio

    from moat.config import load_user
    from moat.vault.oauth.source import RunCredentials

    upstream = load_user(Home.from_environment()).upstream
    source = RunCredentials(vault, upstream, vault.directory, lambda *_: None)
    anyio.run(source.credential, name)


ACTIONS: dict[str, Callable[..., None]] = {each.__name__: each for each in (put, delete, move, moat, renew)}


def _count(left: int) -> None:
    def dies(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(DIED)
            return function(*arguments, **options)

        return step

    changes = [(os, name) for name in sys.argv[1:]] + [(KeyringStore, name) for name in ("write", "delete")]
    for place, name in changes:
        setattr(place, name, dies(getattr(place, name)))


def _do(vault: Vault, step: int, action: str, *argv: str) -> NoReturn:
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        _count(step)
        ACTIONS[action](vault, *argv)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def main() -> None:
    import aiohttp  # noqa: F401 - once, and not for every death
    import keyring.backends.SecretService  # noqa: F401 - as above
    import pyrage  # noqa: F401 - as above
    from cryptography.hazmat.primitives.ciphers import aead  # noqa: F401 - as above

    home = Home.from_environment()
    vault = open_vault(home, new_key=lambda: NewKey(key_file=home.credentials / "key"))
    vault.prepare()  # the keyring is probed once
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(write, 2)
            _do(vault, *json.loads(line))
        os.close(write)
        with os.fdopen(read) as said:
            text = said.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, text]), flush=True)


if __name__ == "__main__":
    main()
