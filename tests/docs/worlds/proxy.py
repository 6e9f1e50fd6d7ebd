"""A stand-in of the API, with a key that the reader has stored."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from tests.docs.session import Place
from tests.e2e.claude_world import configure
from tests.fakes.anthropic import FakeAnthropic

KEY = "sk-ant-api03-made-up-for-this-document-0123456789"


@contextlib.contextmanager
def world(place: Place) -> Iterator[None]:
    with FakeAnthropic(api_key=KEY) as fake:
        configure(place.home, fake)
        place.environment["MOAT_KEYRING_BACKEND"] = "file"
        subprocess.run(
            [place.moat_bin, "grant", "anthropic", "--method", "api-key"],
            env=place.environment | {"ANTHROPIC_API_KEY": KEY},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        yield
