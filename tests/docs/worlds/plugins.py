"""A reader who has granted, and the stand-in of the API."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from tests.conftest import moat_program
from tests.docs.session import Place
from tests.e2e.claude_world import configure
from tests.fakes.anthropic import FakeAnthropic

KEY = "sk-ant-api03-made-up-for-the-documents-0000000000000000"


@contextlib.contextmanager
def world(place: Place) -> Iterator[None]:
    with FakeAnthropic(api_key=KEY) as fake:
        configure(place.home, fake)
        subprocess.run(
            [moat_program(), "grant", "anthropic", "--token-stdin", "--no-validate"],
            input=KEY.encode() + b"\n",
            env=place.environment,
            capture_output=True,
            check=True,
        )
        yield
