"""`moat system prune`: what nothing uses is removed, what something uses is not, and nobody else's things are touched.

How each defence was shown to fail: without `check_unused` the packages of a living run go; with `in_use` always false the
image of a container is offered for removal as well.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.cli import system
from moat.errors import StartError, UsageError
from moat.runtime import storage

Moat = Callable[..., subprocess.CompletedProcess[str]]
FREE, USED = (f"moat-test-prune-{secrets.token_hex(4)}:{name}" for name in ("free", "used"))


def docker(*words: str, text: str = "") -> str:
    done = subprocess.run(["docker", *words], input=text, text=True, check=True, capture_output=True)
    return done.stdout.strip()


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two images of Moat's, one with a container; those of other tests on this engine are not seen."""
    for tag in (FREE, USED):
        docker(
            "build",
            "-q",
            "-t",
            tag,
            "-",
            text=f'FROM moat-base:bookworm\nLABEL moat.image="1" moat.contents="{tag}"\n',
        )
    container = docker("create", USED)
    real = storage.images
    monkeypatch.setattr(storage, "images", lambda: [i for i in real() if i.tag in {FREE, USED}])
    yield
    docker("rm", "-f", container)
    docker("rmi", "-f", USED)


def there(tag: str) -> bool:
    return bool(docker("images", "-q", tag))


@pytest.mark.docker
def test_images_that_nothing_uses_are_removed(
    home: Path, images: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="1 images, at most"):  # nobody is there to be asked
        system.main(["prune"])
    assert system.main(["prune", "--dry-run"]) == 0
    assert FREE in capsys.readouterr().out
    assert there(FREE)
    assert system.main(["prune", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["removed"], told["bytes"] > 0) == ([FREE], True, True)
    assert not there(FREE)
    assert there(USED)
    assert there("moat-base:bookworm")
    assert system.main(["prune", "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().err


@pytest.mark.embedded
def test_downloads_go_when_no_run_can_have_them(
    moat: Moat, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packages and trees of plugins, not the commits that plugins are pinned to, nor anything else of Moat's."""
    monkeypatch.setattr(storage, "images", list)  # images of other tests
    root = home / ".moat"
    gone = [root / "cache/docker/npm/x.tgz", root / "cache/claude/trees/git-abc/plugin.json"]
    kept = [root / "claude/plugins.lock.json", root / "cache/claude/trees/.lock", root / "volumes/a/b/file"]
    for path in (*gone, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 5000)
    moat("run", "--runtime", "embedded", "-d", "--name", "lives", "--", "sleep", "60")
    with pytest.raises(StartError, match="fetched packages and plugins may be in use") as caught:
        system.main(["prune", "--downloads", "--yes"])
    assert caught.value.hint == "stop the runs first: moat stop --all"
    assert all(path.exists() for path in (*gone, *kept))
    moat("stop", "lives")
    assert system.main(["prune", "--downloads", "--yes"]) == 0
    assert "removed, at most" in capsys.readouterr().err
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)
