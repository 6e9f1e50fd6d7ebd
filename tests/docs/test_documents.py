"""What the documents tell a newcomer to type is typed, and must give what they show.

In a document, in order, as one session in an empty directory `~/my-project` of a throw-away home:

    ```console run            commands after `$ ` (continued lines and here-documents as in a terminal), and below
    $ moat list               each the output that must come: `…` stands for any text or lines, what changes from
    NAME   RUN ID  …          run to run (ids, times, ports, gaps) matches by itself. No output shown: any will do.
    ```
    ```console background     the same in another terminal, whose last command goes on until the document ends;
    $ python3 server.py       output that is shown is waited for
    ```
    ```yaml file=agent.yaml   the reader saves this (any language) in the directory where the shell is
    ```

A command must end with status 0, unless `moat: error:` is shown below it, or the next command is `echo $?`. All other
blocks are for reading (terminals, package managers, browsers, other machines).

A document that needs a world around it (a vendor's stand-in, a git server, a stored grant) has a file
`tests/docs/worlds/<document>.py` (`-` as `_`) with

    @contextlib.contextmanager
    def world(place: Place) -> Iterator[None]:
        with FakeAnthropic(api_key="sk-ant-api03-made-up") as fake:
            configure(place.home, fake)                     # files, servers, whatever must be there before
            place.environment["MOAT_RUNTIME"] = "docker"    # without this: embedded
            place.instead["8443"] = str(free_port())        # this text of the document is another here
            yield

`moat`, the pinned `claude`, git (with a user) and the suite's own `python` (as `python`) are on PATH. While you write:

    .venv/bin/python -m pytest -x tests/docs -k runs.md
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.docs.blocks import blocks
from tests.docs.session import Place, Session

DOCUMENTS = sorted([*REPOSITORY.glob("docs/*.md"), REPOSITORY / "README.md"])
RUNNABLE = [path for path in DOCUMENTS if any(block.runs for block in blocks(path))]
GIT_CONFIG = "[user]\n\tname = A Reader\n\temail = reader@example.test\n[init]\n\tdefaultBranch = main\n"


def world_of(document: Path) -> Callable[[Place], AbstractContextManager[None]]:
    name = f"tests.docs.worlds.{document.stem.lower().replace('-', '_')}"
    if importlib.util.find_spec(name) is None:
        return lambda _: contextlib.nullcontext()
    return importlib.import_module(name).world


@pytest.fixture
def place(home: Path, tmp_path: Path, moat_bin: str, claude_binary: str) -> Place:
    workspace = home / "my-project"
    workspace.mkdir()
    (home / ".gitconfig").write_text(GIT_CONFIG)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, program in {"moat": moat_bin, "claude": claude_binary}.items():
        (binaries / name).symlink_to(Path(program).resolve() if name == "claude" else program)
    (binaries / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (binaries / "python").chmod(0o755)
    key = home / "key"  # of sealed files, for documents that do not talk about the vault
    environment = dict(os.environ) | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "MOAT_RUNTIME": "embedded",
        "MOAT_KEYRING_BACKEND": "file",
        "MOAT_KEY_FILE": str(key),
    }
    return Place(home, workspace, moat_bin, environment)


@pytest.mark.timeout(400)
@pytest.mark.embedded
@pytest.mark.docker
@pytest.mark.parametrize("document", RUNNABLE, ids=lambda path: path.name)
def test_a_newcomer_can_follow_it(document: Path, place: Place, tmp_path: Path) -> None:
    with world_of(document)(place):
        session = Session(place, tmp_path, document)
        try:
            for block in blocks(document):
                session.follow(block)
        finally:
            session.close()
