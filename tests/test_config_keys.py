"""Every key of agent.yaml, and of the guide's: it works, with the test that shows it in both runtimes, or it is refused.

The table is compared with what the reader of the file really knows, so a new key cannot be forgotten here.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from moat.config import load
from moat.config.check import Checker, Node, Read
from moat.errors import ConfigError
from tests.conftest import REPOSITORY

RUN = "runtime/test_file_of_a_run.py::test_what_the_file_says_is_so_inside"
MAKINGS = "runtime/test_makings.py::test_a_run_has_what_its_file_says"
IMAGE_ONLY = "runtime/test_makings.py::test_embedded_tells_everything_that_cannot_be_had"
AGENT = "e2e/test_snapshots.py::test_an_agent_at_work"
PLUGINS = "e2e/test_claude_plugins.py::test_a_plugin_works_at_the_first_prompt_of_the_first_run"
MCP = "e2e/test_claude_mcp.py::test_claude_calls_tools_of_all_three_kinds_of_server"
TOOLS = "e2e/test_claude_mcp.py::test_tools_are_judged_and_no_other_port_opens"
SERVICES = "runtime/test_services.py::test_clients_in_the_sandbox_use_them_and_the_proxy"
CONFIGURED = "cli/test_snapshot.py::test_the_configuration_counts"

# Tests that run in both runtimes.
IN_BOTH = {
    "agent": RUN,
    "command": RUN,
    "dependencies": RUN,
    "env": RUN,
    "grants": RUN,
    "interactive": RUN,
    "mounts": RUN,
    "name": RUN,
    "version": RUN,
    "network.policy": RUN,
    "network.rules": RUN,
    "network.mode": RUN,
    "network.budget": RUN,
    "network.host": "endpoints/test_attacks.py::test_one_port_of_the_host_is_open_and_no_other",
    "ports": "endpoints/test_serving.py::test_the_sandbox_knows_its_addresses",
    "runtime": "e2e/test_claude_print.py::test_the_file_and_the_flags_reach_the_run",
    "hooks.pre_run": MAKINGS,
    "container.memory": MAKINGS,
    "volumes": MAKINGS,
    "mcp": MCP,
    "mcp.tools": TOOLS,
    "claude.mcp": MCP,
    "claude.plugins": PLUGINS,
    "claude.marketplaces": PLUGINS,
    "snapshots.triggers": AGENT,
    "snapshots.exclude": AGENT,
}
# A test for each runtime: docker, then embedded, which has to say what it cannot give.
IN_EACH = {
    "base_image": ("runtime/test_image_build.py::test_a_base_image_that_cannot_be_had", IMAGE_ONLY),
    "hooks.post_build": (
        "runtime/test_image_build.py::test_every_kind_of_dependency_works_for_the_agent",
        IMAGE_ONLY,
    ),
    "hooks.post_build_root": (
        "runtime/test_image_build.py::test_every_kind_of_dependency_works_for_the_agent",
        IMAGE_ONLY,
    ),
    "services": (SERVICES, IMAGE_ONLY),
    "container.cpus": (
        "runtime/test_makings.py::test_a_container_is_held_to_its_processors_and_memory",
        "runtime/test_makings.py::test_embedded_holds_a_run_to_its_processors",
    ),
}
# What happens on the host, the same whatever made the sandbox.
ON_THE_HOST = {
    "claude.sync_logs": "e2e/test_claude_plugins.py::test_without_sync_logs_nothing_is_kept_and_nothing_can_be_continued",
    "network.body_leaks": "proxy/test_leak_guard.py::test_a_placeholder_in_a_body_passes_where_the_user_says_so",
    "network.unreadable": "proxy/test_leaks.py::test_what_cannot_be_searched_passes_where_the_user_says_so",
    "snapshots.disabled": "cli/test_snapshot.py::test_without_snapshots",
    "snapshots.retention": CONFIGURED,
}
REFUSED = {
    "ask", "upstream", "endpoints", "journal", "proxy", "codex", "gemini", "secrets", "workspace", "workspaces", "sandbox", "tracing",
    "clipboard", "language_servers", "network.allow", "network.keep_policy", "container.dns", "container.ulimits",
    "claude.base_url", "claude.hooks", "claude.host_hooks", "claude.subscription_type", "claude.rate_limit_tier",
    "claude.llm-gateway",
}  # fmt: skip
SECTIONS = {"network", "hooks", "container", "claude", "snapshots"}
EVERYTHING = """\
network: {policy: strict}
hooks: {pre_run: x}
container: {memory: 512m}
claude: {sync_logs: true}
snapshots: {disabled: true}
"""


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], set[str]]:
    """(keys that are read, keys that are refused) by the very code that reads the file."""
    read: set[str] = set()
    refused: set[str] = set()
    fields = Checker.fields

    def watched(
        self: Checker, node: Node, what: str, known: Mapping[str, Read], no: Mapping[str, str]
    ) -> dict[str, object]:
        if what in {"the file", *SECTIONS}:
            prefix = "" if what == "the file" else f"{what}."
            read.update(prefix + key for key in known)
            refused.update(prefix + key for key in no)
        return fields(self, node, what, known, no)

    monkeypatch.setattr(Checker, "fields", watched)
    (tmp_path / "agent.yaml").write_text(EVERYTHING)
    load(tmp_path)
    return read - SECTIONS, refused


def test_the_table_has_every_key(known: tuple[set[str], set[str]]) -> None:
    read, refused = known
    assert read == (IN_BOTH.keys() | IN_EACH.keys() | ON_THE_HOST.keys()) - {"mcp.tools"}
    assert refused == REFUSED


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_refused_key_says_why(tmp_path: Path, key: str) -> None:
    section, _, name = key.rpartition(".")
    text = f"{section}:\n  {name}: x\n" if section else f"{name}: x\n"
    (tmp_path / "agent.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    line, column = (2, 3) if section else (1, 1)
    (problem,) = caught.value.problems
    start, _, reason = problem.partition(f"{name!r}: ")
    assert start == f"agent.yaml:{line}:{column}: "
    assert len(reason.split()) > 3
    assert "not supported yet" not in reason


@cache
def functions(path: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse((REPOSITORY / "tests" / path).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("key", "test"), sorted(IN_BOTH.items()))
def test_a_key_works_in_both_runtimes(key: str, test: str) -> None:
    path, _, name = test.partition("::")
    function = functions(path)[name]
    arguments = {argument.arg for argument in function.args.args}
    marks = {ast.unparse(mark) for mark in function.decorator_list}
    by_name = {"BOTH", "runtimes", "pytest.mark.parametrize('runtime', RUNTIMES)"} & marks
    # Of tests/endpoints: the fixture `run` is a run of each runtime.
    assert by_name or "run" in arguments, f"{key}: {test} runs in one runtime only"


@pytest.mark.parametrize(
    "test", sorted({*(test for pair in IN_EACH.values() for test in pair), *ON_THE_HOST.values()})
)
def test_the_other_tests_are_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert name in functions(path)
