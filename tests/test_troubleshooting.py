"""Every entry of docs/troubleshooting.md is met: its heading is what Moat says, and a test provokes it.

A heading is a message as it is printed (`…` for what differs), or a symptom that another program shows. Who adds an
entry adds it here, with the test that makes it happen for real.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import known_failures
from tests.conftest import REPOSITORY

MESSAGES = {
    "No Claude Code credentials found": "e2e/test_claude_print.py::test_without_a_credential_both_ways_to_one_are_told",
    "Credential expired": "e2e/test_claude_print.py::test_an_expired_credential_is_told",
    "The ChatGPT login of the Codex on this machine expired at …": (
        "cli/test_grant_codex.py::test_without_a_login_that_can_be_used_nothing_is_stored"
    ),
    "Logging in at … from within the sandbox would leave a real token there": (
        "proxy/test_logins.py::test_a_real_token_is_not_fetched"
    ),
    "… gave no credential: it is empty": "cli/test_grant_origin.py::test_a_run_asks_there_and_does_not_begin_without",
    "The request to AWS cannot be signed with the run's role: …": (
        "proxy/test_signing.py::test_what_is_not_signed_for"
    ),
    "Your own AWS credentials have expired": "vault/test_aws.py::test_what_sts_refuses",
    "Your own AWS credentials may not assume the role …": "vault/test_aws.py::test_what_sts_refuses",
    "… wants its password to be sent to …": (
        "e2e/test_registry.py::test_a_registry_cannot_send_its_password_elsewhere"
    ),
    "… does not accept the login for …": (
        "vault/test_registry.py::test_what_is_no_token_is_an_error_and_not_asked_for_at_once"
    ),
    "… takes no identity token, …": (
        "e2e/test_registry.py::test_images_are_pushed_and_pulled_without_a_login_in_the_sandbox"
    ),
    "The credential store cannot be changed": "vault/test_disk.py::test_a_disk_that_refuses_loses_nothing",
    "The journal cannot be written": "attacks/test_journal.py::test_a_credential_stays_when_its_use_cannot_be_recorded",
    "The network of this run is closed: the journal cannot be written": (
        "runtime/test_survival.py::test_the_home_turns_read_only_under_runs"
    ),
    "The Docker engine has not answered for … s": "runtime/test_engine_restart.py::test_the_engine_stands_still",
    "moat refused this request: the budget of … does not allow it": (
        "proxy/test_budget.py::test_an_upload_that_says_its_length_is_refused_before_anything_is_opened"
    ),
    "moat refused this request: the user was asked whether this run may reach …, and nobody has answered": (
        "cli/test_ask.py::test_nobody_there"
    ),
    "No rule of … allows this request, with which the credential … would go out": (
        "attacks/test_ask.py::test_only_the_user_answers"
    ),
    "agent.yaml asks for what is yours, and nobody has confirmed it": (
        "cli/test_confirm.py::test_where_nobody_can_be_asked_it_is_told"
    ),
    "agent.yaml asks for more of what is yours than anybody can look through": (
        "cli/test_confirm.py::test_nobody_looks_through_a_list_without_end"
    ),
    "Requests with the credential … fail: …": (
        "cli/test_refused.py::test_one_that_is_revoked_is_told_once_and_asked_for_no_more"
    ),
    "No OS keyring answers here": "vault/test_oskeyring.py::test_no_bus_at_all",
    "The OS keyring is locked": "vault/test_oskeyring.py::test_locked_keyring",
    "The sealed credentials need their passphrase": "vault/test_sealed.py::test_nobody_to_ask",
    "No host key of … is known": "cli/test_grant_ssh.py::test_a_host_that_is_not_known",
    "The key of ssh:… is not in your SSH agent": "cli/test_grant_ssh.py::test_an_encrypted_key_needs_an_agent",
    "The MCP server … does not accept the request without a valid login": (
        "proxy/test_mcp.py::test_a_server_that_wants_a_login_is_told_to_the_user_and_not_to_the_client"
    ),
    "The login oauth:… is no longer accepted by its server": (
        "e2e/test_claude_mcp.py::test_a_server_that_demands_oauth_gets_it_from_the_host_alone"
    ),
    "The login oauth:… was lost: Moat was cut off while its server renewed it": (
        "vault/test_oauth_source.py::test_an_answer_that_was_lost_in_a_crash_is_told"
    ),
    "The credential mcp:… is bound to …, and the MCP server … is at …": (
        "e2e/test_claude_mcp.py::test_a_workspace_cannot_send_a_credential_elsewhere"
    ),
    "moat refused to call … of the MCP server …": (
        "proxy/test_mcp.py::test_a_denied_call_gets_an_error_that_a_model_can_act_on"
    ),
    "The body is encoded as …, which cannot be looked into": (
        "proxy/test_leaks.py::test_what_cannot_be_searched_is_withheld"
    ),
    "The request to … carries the placeholder of grant …": (
        "attacks/test_no_credential.py::test_the_placeholder_in_the_wrong_place_is_refused"
    ),
    "The request to … cannot be searched for placeholders": (
        "proxy/test_leak_guard.py::test_what_cannot_be_looked_into_is_refused"
    ),
    "The certificate of … is not accepted": "proxy/test_refusals.py::test_the_runs_ca_is_not_trusted_upstream",
    "Failed to install Anthropic marketplace": (
        "runtime/test_plugins.py::test_the_official_marketplace_is_known_by_name_and_fails_in_the_guides_words"
    ),
    "Failed to fetch marketplace …": (
        "runtime/test_plugins.py::test_an_unknown_marketplace_and_an_unreachable_one"
    ),
    "… looks like a secret": (
        "runtime/test_claude_settings.py::test_the_users_own_file_must_be_usable_and_without_secrets"
    ),
    "The sandbox image could not be built": (
        "runtime/test_image_build.py::test_a_failed_step_shows_its_last_lines"
    ),
    "The base image … is not here and cannot be pulled": (
        "runtime/test_image_build.py::test_a_base_image_that_cannot_be_had"
    ),
    "Unknown dependency …": "runtime/test_deps.py::test_what_is_no_dependency",
    "The embedded runtime cannot give this run what it asks for": (
        "runtime/test_makings.py::test_embedded_tells_everything_that_cannot_be_had"
    ),
    "hooks.pre_run failed with status …": (
        "runtime/test_makings.py::test_a_failing_pre_run_is_told_and_the_command_never_starts"
    ),
    "The service … ended before it was ready": (
        "runtime/test_services.py::test_a_service_that_does_not_come_up_is_told_with_its_last_lines"
    ),
    "was not ready within 60 s": (
        "runtime/test_services.py::test_a_service_that_does_not_come_up_is_told_with_its_last_lines"
    ),
    "The service … ended with status …": (
        "runtime/test_services.py::test_one_that_dies_in_the_middle_is_told_and_the_run_goes_on"
    ),
    "The volumes of … belong to …": (
        "runtime/test_makings.py::test_another_project_of_the_same_name_does_not_get_the_volumes"
    ),
    "npm cannot install …": "runtime/test_installers.py::test_npm_tells_what_it_could_not_install",
    "uv cannot install …": (
        "runtime/test_installers.py::test_uv_tells_what_it_could_not_install_without_the_password_of_the_index"
    ),
    "… is just starting in this workspace": (
        "cli/test_snapshot.py::test_a_restore_waits_for_nobody_who_is_about_to_write"
    ),
    "… cannot be paused": "cli/test_snapshot.py::test_a_restore_waits_for_nobody_who_is_about_to_write",
    "It is done, and could not be recorded": "cli/test_snapshot.py::test_what_cannot_be_recorded_is_told",
    "Unknown option …": "cli/test_parser.py::test_a_wrong_command_line",
    "The OS keyring did not answer within …": (
        "vault/test_oskeyring.py::test_a_silent_keyring_meets_the_deadline"
    ),
    "The OS keyring does not answer any more": (
        "vault/test_oskeyring.py::test_what_passes_is_tried_again_and_what_does_not_is_told_at_once"
    ),
    "No space left for a snapshot": (
        "runtime/snapshots/test_crash.py::test_a_full_disk_is_a_clear_error_and_costs_nothing"
    ),
    "The workspace has more than 1,000,000 files and directories": (
        "runtime/snapshots/test_roundtrip.py::test_too_many_entries_is_a_clear_error"
    ),
    "… is a symbolic link, which a sandbox could replace": "git/test_fence.py::test_a_link_in_place_of_the_hooks_is_refused",
    "Docker cannot mount …: its name is not UTF-8": "git/test_worktrees.py::test_a_name_that_docker_has_no_word_for",
    "A restore of … was cut off and is not complete": "cli/test_snapshot.py::test_a_restore_that_was_cut_off",
    "Object … is damaged": (
        "runtime/snapshots/test_crash.py::test_a_damaged_object_is_told_and_nothing_is_touched_by_it"
    ),
    "The run … is alive and has endpoints under this name": (
        "endpoints/test_life.py::test_a_name_that_is_in_use_is_an_error_before_anything_is_made"
    ),
    "Port … is in use on this machine": (
        "endpoints/test_life.py::test_a_configured_port_is_that_one_or_an_error"
    ),
    "The gateway of endpoints runs on port …, … says …": (
        "endpoints/test_life.py::test_a_configured_port_is_that_one_or_an_error"
    ),
    "… was changed while run … could write it, maybe by the agent, and has commands that git would run": (
        "git/test_unseen.py::test_filters_that_a_run_configured"
    ),
    "Run … is active in the worktree of …": "git/test_worktrees.py::test_a_worktree_has_one_run",
    "Branch … is checked out in …": "git/test_worktrees.py::test_what_git_cannot_have_is_explained",
    "… changed what git on this machine obeys": (
        "git/test_fence.py::test_what_the_fence_cannot_keep_out_is_told"
    ),
    "agent.yaml was changed while run … could write it": (
        "cli/test_tampering.py::test_a_changed_file_is_refused_until_it_was_accepted"
    ),
    "A session needs a terminal": (
        "e2e/test_claude_print.py::test_what_cannot_be_started_is_told_before_anything_is_made"
    ),
    "Runs cannot be kept in …": "runtime/test_survival.py::test_a_home_that_cannot_be_written",
    "A run needs more open files than it may have here": "runtime/test_survival.py::test_too_few_files",
    "The Docker engine went away under the run": (
        "runtime/test_engine_restart.py::test_the_engine_ends_and_comes_back"
    ),
    "The package `moat` at … is not Moat's": (
        "cli/test_startup.py::test_another_projects_package_in_the_same_environment_is_noticed"
    ),
}

# What somebody sees who does not see a message of Moat's.
SYMPTOMS = {
    'A run is "lost"': "runtime/test_survival.py::test_everything_is_gone_after_a_restart_of_the_machine",
    "moat audit --verify says TAMPERED": "cli/test_audit.py::test_a_verdict_and_its_exit_status",
    "Network errors": "cli/test_network_check.py::test_the_guides_check_of_a_credential",
    "Permission denied (publickey) in a sandbox": (
        "ssh/test_runs.py::test_the_wrong_key_and_the_wrong_host_fail"
    ),
    "Received disconnect … this run has no SSH grant": (
        "ssh/test_runs.py::test_the_tunnel_carries_ssh_and_nothing_else"
    ),
    "Neither runtime can be used": "cli/test_doctor.py::test_without_any_runtime_it_fails",
    "moat trace says that exchanges are not in this trace": (
        "attacks/test_journal.py::test_a_flood_fills_no_disk_and_pushes_nothing_out"
    ),
    "A request gets 403 with X-Moat-Denied": "cli/test_run.py::test_strict_policy_and_allow_host",
    "A program in the sandbox does not trust the certificate": (
        "runtime/test_image_build.py::test_java_trusts_the_run_s_ca"
    ),
    "Git in a sandbox says Author identity unknown": "git/test_fence.py::test_who_commits_in_a_sandbox",
    "Git in a sandbox says Device or resource busy": (
        "git/test_fence.py::test_hooks_and_configuration_cannot_be_written"
    ),
    "Git in a sandbox says Read-only file system": (
        "git/test_worktrees.py::test_what_git_can_and_cannot_do_in_a_worktree"
    ),
    "The browser warns of the certificate of an endpoint": (
        "endpoints/test_browser.py::test_nothing_is_trusted_before_the_user_says_so"
    ),
    "An endpoint answers 502: nothing listens": (
        "endpoints/test_serving.py::test_a_server_that_is_not_there_is_told"
    ),
    "An endpoint answers 403: a page of another site sent this": (
        "endpoints/test_serving.py::test_a_page_of_another_site_may_not_ask"
    ),
    "An endpoint answers 403: this belongs to another user of this machine": (
        "endpoints/test_attacks.py::test_another_user_of_the_machine_cannot_use_the_gateway"
    ),
    "Claude Code hangs on startup": "e2e/test_claude_tui.py::test_it_starts_without_a_question_and_answers",
    'A run is "failed" although nothing was wrong': (
        "cli/test_audit.py::test_a_killed_supervisor_and_a_removed_run"
    ),
}


def headings() -> list[str]:
    """Each entry; ` / ` in a heading separates two messages with one remedy."""
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    return [part for line in re.findall(r"^### (.*)$", text, re.MULTILINE) for part in line.split(" / ")]


def templates() -> list[str]:
    """Every text of the source, with a NUL for what is filled in at run time."""
    found = []
    for path in (REPOSITORY / "moat").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


TEMPLATES = templates()


def says(template: str, heading: str) -> bool:
    """Whether a text made of `template` can begin, or go on, as `heading` shows."""
    words = max((len(part) for part in template.split("\0")), default=0)
    if words < 8:
        return False
    holes = ".*?".join(re.escape(part) for part in template.split("\0"))
    shown = heading.replace("…", "\0")
    pieces = ".*?".join(re.escape(part) for part in shown.split("\0"))
    whole = re.search(pieces, template.replace("\0", "x y"), re.IGNORECASE | re.DOTALL)
    return bool(whole or re.search(holes, shown, re.IGNORECASE | re.DOTALL))


def test_every_entry_is_known_here() -> None:
    known = MESSAGES.keys() | SYMPTOMS.keys()
    assert set(headings()) == known, set(headings()) ^ known


@pytest.mark.parametrize("heading", sorted(MESSAGES.keys()))
def test_the_heading_is_what_moat_says(heading: str) -> None:
    assert any(says(template, heading) for template in TEMPLATES)


def test_a_heading_that_nothing_says_is_noticed() -> None:
    for heading in ("The dog … ate the proxy", "No space left for the dog", "… is out of order today"):
        assert not any(says(template, heading) for template in TEMPLATES), heading


@pytest.mark.parametrize(("heading", "test"), sorted((MESSAGES | SYMPTOMS).items()))
def test_a_test_provokes_it(heading: str, test: str) -> None:
    assert exists(test), heading


@pytest.mark.parametrize("failure", known_failures.ALL, ids=lambda failure: failure.what)
def test_what_others_failed_at_has_a_test_or_a_reason(failure: known_failures.Failure) -> None:
    if isinstance(failure, known_failures.Met):
        assert failure.tests
        assert [test for test in failure.tests if not exists(test)] == []
    else:
        assert len(failure.why.split()) > 3


def exists(test: str) -> bool:
    """Whether `path::name`, below `tests`, is a test."""
    path, name = test.split("::")
    tree = ast.parse(Path(REPOSITORY, "tests", path).read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return name in names
