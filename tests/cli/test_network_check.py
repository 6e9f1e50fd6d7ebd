"""The guide's first step when requests fail: trying the stored credential without the agent."""

from __future__ import annotations

import json
import re

import pytest

from tests.e2e.claude_world import RUNTIMES, World
from tests.e2e.conftest import kind, world

__all__ = ["kind", "world"]
CHECK = ("--grant", "anthropic", "--", "curl", "-s", "https://api.anthropic.com/v1/models")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_guides_check_of_a_credential(world: World, runtime: str) -> None:
    (world.workspace / "agent.yaml").write_text("dependencies: [curl]\n")
    good = world.moat("run", "--runtime", runtime, *CHECK)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["data"], "what the guide promises: the models"
    assert re.search(
        r"GET https://api\.anthropic\.com/v1/models 200", world.moat("trace", "--network").stdout
    )
    world.fake.api_key = "sk-ant-api03-another"
    bad = world.moat("run", "--runtime", runtime, *CHECK)
    assert json.loads(bad.stdout)["error"]["type"] == "authentication_error"
    assert world.secret not in bad.stdout + bad.stderr
