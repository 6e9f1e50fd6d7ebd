"""The harness itself: it must see a wrong document."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import blocks, steps
from tests.docs.session import Place, Session
from tests.docs.shown import begins, matches
from tests.docs.test_documents import place

__all__ = ["place"]


def follow(text: str, place: Place, tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(text)
    session = Session(place, tmp_path, document)
    try:
        for block in blocks(document):
            session.follow(block)
    finally:
        session.close()


GOOD = """\
```console run
$ cat > note.txt <<'END'
$ not a command
END
$ sed 's/^. //' note.txt
not a command
$ export WORD=hello; mkdir sub && cd sub
$ echo "$WORD" \\
    world  # said
hello world
$ moat run
moat: error: …
moat: hint: …
$ sh -c 'exit 7'
$ echo $?
7
```
for reading:
```console
$ false
```
  ```yaml file=deep/agent.yaml
  name: here
  ```
```console run
$ cat deep/agent.yaml
name: here
```
```console background
$ sh -c 'echo "port 127.0.0.1:41234"; sleep 60'
port 127.0.0.1:8080
```
"""


def test_a_right_document_is_followed(place, tmp_path):
    follow(GOOD, place, tmp_path)
    assert (place.workspace / "note.txt").read_text() == "$ not a command\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("$ echo one\ntwo", "printed something else"),
        ("$ false", "exit status 1"),
        ("$ true\nmoat: error: never", "exit status 0"),
        ("$ printf 'a\\nb\\n'\na", "printed something else"),
        ("$ echo a\na\nb", "printed something else"),
    ],
)
def test_a_wrong_document_fails(place, tmp_path, text, told):
    with pytest.raises(AssertionError, match=told):
        follow(f"```console run\n{text}\n```\n", place, tmp_path)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("run_a1b2c3d4e5f6  running  5m", "run_0123456789ab running 12s"),
        ("[15:04:05] GET https://x/ 200 (812 ms)", "[01:02:03] GET https://x/ 200 (1 ms)"),
        ("…\nlast", "one\ntwo\nlast"),
        ("first\n…", "first"),
        ("key-…-end", "key-abc-end"),
        ("https://web.a.localhost:8443/", "https://web.a.localhost:41234/"),
        ("[main 1a2b3c4] done", "[main 0f00f00] done"),
    ],
)
def test_what_changes_matches_by_itself(shown, printed):
    assert matches(shown.splitlines(), printed.splitlines())


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("run_a1b2c3d4e5f6", "run_short"),
        ("200", "404"),
        ("a", "ab"),
        ("…\nlast", "last\nmore"),
        ("facade", "decade"),
    ],
)
def test_what_differs_does_not(shown, printed):
    assert not matches(shown.splitlines(), printed.splitlines())


def test_a_program_that_goes_on_may_print_more():
    assert begins(["ready"], ["ready", "GET /"])
    assert not begins(["ready"], [])


def test_an_open_command_is_an_error(tmp_path):
    document = tmp_path / "x.md"
    document.write_text("```console run\n$ cat <<END\nabc\n```\n")
    with pytest.raises(AssertionError, match="not finished"):
        steps(blocks(document)[0])
