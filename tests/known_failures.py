"""Failures that users of such tools have met elsewhere, each with the test that keeps Moat from it.

`Met`: a test goes there. `Cannot`: why there is nothing to test. test_troubleshooting.py checks that the tests exist.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Met:
    what: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Cannot:
    what: str
    why: str


Failure = Met | Cannot


def met(what: str, *tests: str) -> Met:
    return Met(what, tests)


PROXY = (
    met("git over https refuses a Bearer token", "proxy/test_exchange.py::test_basic_injection_for_git"),
    met("a 407 without a challenge is never answered by git", "proxy/test_refusals.py::test_a_token_is_asked_for_as_clients_expect"),
    met("git needs Basic towards the proxy", "proxy/test_server.py::test_git"),
    met("events are held back by reading ahead", "proxy/test_exchange.py::test_an_event_arrives_before_the_origin_sends_the_next"),
    met("a scrubbed response is buffered", "proxy/test_scrub.py::test_a_flushed_event_comes_out_at_once"),
    met("a time-out for heads that thinking models exceed", "proxy/test_limits.py::test_every_limit_has_its_reason"),
    met("a WebSocket upgrade is not passed on", "proxy/test_exchange.py::test_an_upgrade_becomes_an_opaque_relay"),
    met("HTTP/2 on one side and HTTP/1.1 on the other hang", "proxy/test_h2.py::test_curl_and_httpx_switch_to_http2"),
    met("anthropic-beta is replaced instead of added to", "proxy/test_inject.py::test_merge_appends_without_duplicates"),
    met("the x-api-key placeholder stays beside Authorization", "proxy/test_inject.py::test_strip_removes_what_the_client_sent"),
    met("of several credentials for a host the wrong one is used", "proxy/test_inject.py::test_only_the_owner_of_a_sent_header_is_used"),
    met("wildcard hosts of a credential match nothing", "proxy/test_inject.py::test_wildcard_hosts_and_ports"),
    met("the request log has the secret", "proxy/test_trace.py::test_the_file_never_holds_a_secret"),
    met("a token that was replaced is used until it expires", "vault/test_oauth_source.py::test_a_token_that_its_server_does_not_take_is_renewed_once"),
    met("running out of descriptors ends the accept loop", "proxy/test_server.py::test_running_out_of_file_descriptors_is_survived"),
    met("256 descriptors stall a run", "proxy/test_network.py::test_connections_wait_while_no_descriptor_is_left"),
    Cannot("a 403 of the profile endpoint breaks the status line", "a response of the vendor passes as it is; nothing of Moat asks it"),
)  # fmt: skip

ROUTING = (
    met("NO_PROXY leads around the policy", "runtime/test_trust.py::test_a_user_s_env_cannot_lead_around_the_proxy"),
    met("the user's own HTTP_PROXY or ALL_PROXY counts inside", "cli/test_run.py::test_the_user_cannot_lead_around_the_proxy"),
    Cannot("a user-defined network does not reach the gateway's address", "a sandbox has no network; it is given a unix socket"),
    met("another resolver breaks names of the host", "runtime/test_docker_network.py::test_opened_ports_of_the_host_have_a_name_and_no_other_has"),
    met("IPv6 is a way out", "runtime/test_embedded_attacks.py::test_no_address_outside_is_reached", "runtime/test_docker_attacks.py::test_nothing_outside_is_reached"),
    Cannot("two proxies want one port", "there is one proxy for each run and no port on the host"),
    met("an MCP server cannot be reached through CONNECT", "e2e/test_claude_mcp.py::test_claude_calls_tools_of_all_three_kinds_of_server"),
)  # fmt: skip

STATE = (
    met("the proxy ends with the terminal", "cli/test_run.py::test_a_run_outlives_its_command_line"),
    met("a quick command is refused because its run is not known yet", "runtime/test_docker_network.py::test_the_command_starts_after_the_listeners"),
    Cannot("a daemon that restarts loses its runs", "every run has a supervisor of its own"),
    met("thousands of daemons are started at once", "endpoints/test_life.py::test_many_at_once_start_one"),
    met("a living run is taken for dead", "runtime/test_records.py::test_a_living_owner_is_seen_and_never_written_to"),
    met("renewing a token undoes a new grant, or mixes profiles", "vault/test_oauth_source.py::test_a_login_that_was_taken_back_says_so_once_and_a_new_one_helps", "vault/test_oskeyring.py::test_profiles_are_apart"),
    met("looking at runs changes them", "cli/test_list.py::test_looking_changes_nothing"),
    met("routes of endpoints are lost or stay", "endpoints/test_life.py::test_routes_are_seen_at_once_and_only_of_the_living"),
    Cannot("asking the engine for each run in turn holds up the command line", "a run's state is its lock and its file; no engine is asked"),
    met("closing waits for ever for a container", "runtime/test_docker.py::test_destroy_leaves_nothing_and_may_be_repeated"),
)  # fmt: skip

CONTAINERS = (
    met("logs are lost or framed", "runtime/test_docker.py::test_stdout_and_stderr_are_apart_and_complete", "cli/test_run.py::test_detached"),
    Cannot("networks leak until there is no address left", "no network is made, for services neither"),
    met("names of containers are not recognised any more", "runtime/test_docker.py::test_reap_removes_what_a_killed_supervisor_left"),
    met("temporary directories stay behind", "runtime/test_embedded_life.py::test_destroy_leaves_no_process_mount_descriptor_group_or_directory"),
    met("~/.config belongs to root", "runtime/test_docker.py::test_home_files_and_parents_of_mounts_are_the_agent_s"),
    met("files of the host change their owner", "runtime/test_idmap.py::test_a_private_directory_of_root_is_the_agents_inside_and_roots_on_disk"),
    met("a home on tmpfs is root's, and nothing in it can be executed", "runtime/test_docker.py::test_the_agent_owns_home_and_workspace", "runtime/test_embedded.py::test_home_is_private_empty_executable_and_the_agents"),
    met("a worktree's .git leads nowhere", "git/test_worktrees.py::test_a_branch_is_made_worked_on_and_kept"),
    Cannot("Apple's container mixes stderr into an id", "that runtime is not there"),
    met("Dockerfiles that an older builder cannot read", "runtime/test_image.py::test_both_builders_tell_a_step_in_the_same_words", "runtime/test_image_build.py::test_every_kind_of_dependency_works_for_the_agent"),
    met("a pinned version is ignored", "runtime/test_deps.py::test_a_prefix_means_its_newest_release"),
    met("a plugin that cannot be installed is silently missing", "runtime/test_plugins.py::test_an_unknown_marketplace_and_an_unreachable_one"),
    met("a failing pre_run looks like a failing container", "runtime/test_makings.py::test_a_failing_pre_run_is_told_and_the_command_never_starts"),
    met("a gh without a login ends the grant", "vault/test_local_login.py::test_gh_without_a_login"),
)  # fmt: skip

CLAUDE = (
    met("an expiry that is not known means logged out", "vault/test_providers.py::test_anthropic_setup_token_claims_no_more_than_it_can"),
    met("a placeholder that is not shaped like a token", "vault/test_providers.py::test_anthropic_by_subscription"),
    met("permissions are asked for after all", "e2e/test_claude_tui.py::test_an_initial_prompt_is_answered_and_a_tool_used_without_asking"),
    met("questions of trust and onboarding", "e2e/test_claude_tui.py::test_it_starts_without_a_question_and_answers"),
    met("conversations are looked for under another name", "runtime/test_claude_agent.py::test_slug"),
    met("the token is not found in what setup-token prints", "vault/test_setup_token.py::test_the_token_in_real_output"),
    met("gh does not take the placeholder", "vault/test_providers.py::test_github_placeholder_has_one_length"),
    met("a key in the environment wins over the login", "e2e/test_claude_fake.py::test_its_configuration_is_moats_and_only_its_credential_counts"),
    met("a grant is looked for under its alias", "vault/test_store.py::test_names_are_canonical"),
)  # fmt: skip

TERMINAL = (
    met("the size comes after the program has started", "runtime/test_docker.py::test_the_terminal_has_its_size_from_the_start_and_changes_it", "runtime/test_embedded.py::test_the_terminal_has_its_size_before_the_command_starts"),
    Cannot("a status bar and scroll regions of the program disturb each other", "there is no status bar: bytes pass as they are"),
    Cannot("answers of an emulated terminal freeze it", "no terminal is emulated while somebody is attached"),
    met("modes stay switched on after a program or a detach", "cli/test_attach.py::test_a_program_that_does_not_clean_up", "runtime/test_screen.py::test_modes_at_every_split"),
    met("the prefix key of other keyboard protocols", "cli/test_keys.py::test_detach", "cli/test_keys.py::test_a_lone_escape_is_not_held_back"),
    met("escape sequences come in pieces", "runtime/test_screen.py::test_modes_at_every_split"),
    met("a terminal is asked for where there is none", "e2e/test_claude_print.py::test_what_cannot_be_started_is_told_before_anything_is_made"),
    met("the first output is lost because attaching came late", "runtime/test_supervisor.py::test_with_hold_the_command_waits_for_the_first_viewer"),
    met("resizing does not reach the program", "runtime/test_embedded.py::test_a_resize_reaches_the_command"),
    Cannot("images in the clipboard", "the sandbox has no way to the host's clipboard, on purpose"),
)  # fmt: skip

# What the guide's own troubleshooting section promises, with its words.
GUIDE = (
    met("No Claude Code credentials found", "e2e/test_claude_print.py::test_without_a_credential_both_ways_to_one_are_told"),
    met("Credential expired", "e2e/test_claude_print.py::test_an_expired_credential_is_told"),
    met("Claude Code hangs on startup", "e2e/test_claude_tui.py::test_it_starts_without_a_question_and_answers"),
    met("Failed to install Anthropic marketplace", "runtime/test_plugins.py::test_the_official_marketplace_is_known_by_name_and_fails_in_the_guides_words"),
    met("Network errors", "cli/test_network_check.py::test_the_guides_check_of_a_credential"),
)  # fmt: skip

ALL: tuple[Failure, ...] = (*PROXY, *ROUTING, *STATE, *CONTAINERS, *CLAUDE, *TERMINAL, *GUIDE)
