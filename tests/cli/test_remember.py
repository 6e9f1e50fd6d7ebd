"""`always`: one entry more in the user's own file; comments, order, quotes and everything else stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from moat.config import load_user
from moat.config.remember import remember
from moat.errors import ConfigError
from moat.paths import Home
from moat.rules import parse_host_pattern

FILE = """\
# mine
upstream:
    connect_to:            # for the tests
        "a.test:443": "127.0.0.1:1"   # quoted

ask:
    timeout: 5m
    # hosts of the company
    allow:
      - "*.corp.test"   # all of it
      - old.test:443
    deny: [ads.test:443, other.test]
journal:
    max_size: 64m
"""


@pytest.fixture
def place(home: Path) -> Home:
    found = Home(home / ".moat")
    found.root.mkdir(mode=0o700)
    return found


def test_an_entry_more_and_nothing_else(place: Home) -> None:
    place.config_file.write_text(FILE)
    remember(place, "new.test:8443", allow=True)
    assert place.config_file.read_text() == FILE.replace(
        "      - old.test:443\n", "      - old.test:443\n      - new.test:8443\n"
    )
    assert parse_host_pattern("new.test:8443") in load_user(place).ask.allow
    remember(place, "new.test:8443", allow=True)
    assert place.config_file.read_text().count("new.test") == 1
    remember(place, "ads.test:443", allow=True)
    assert "deny: [other.test]" in place.config_file.read_text()
    assert place.config_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", ["", "# only a comment", "endpoints: {port: 8443}\n", "ask: {timeout: 5s}\n"]
)
def test_whatever_is_there_before(place: Home, text: str) -> None:
    if text:
        place.config_file.write_text(text)
    remember(place, "no.test:443", allow=False)
    user = load_user(place)
    assert user.ask.deny == (parse_host_pattern("no.test:443"),)
    assert place.config_file.read_text().startswith(text.rstrip("}\n"))
    remember(place, "no.test:443", allow=True)
    assert (load_user(place).ask.allow, load_user(place).ask.deny) == (
        (parse_host_pattern("no.test:443"),),
        (),
    )


def test_a_file_with_mistakes_is_left_alone(place: Home, tmp_path: Path) -> None:
    place.config_file.write_text("ask: {alow: []}\n")
    with pytest.raises(ConfigError, match="did you mean 'allow'"):
        remember(place, "a.test:443", allow=True)
    assert place.config_file.read_text() == "ask: {alow: []}\n"
    place.config_file.unlink()
    (tmp_path / "dotfile").write_text(FILE)
    place.config_file.symlink_to(tmp_path / "dotfile")
    with pytest.raises(ConfigError, match="is a link"):
        remember(place, "a.test:443", allow=True)
    assert (tmp_path / "dotfile").read_text() == FILE


def test_what_is_no_answer(place: Home) -> None:
    place.config_file.write_text("ask: {timeout: 2h, allow: ['*', 'x y'], deny: [a.test/b]}\n")
    with pytest.raises(ConfigError) as caught:
        load_user(place)
    assert len(caught.value.problems) == 4
