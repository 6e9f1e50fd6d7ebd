"""Plugins and marketplaces on the host: who counts, how they are fetched and pinned, what is refused."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.config import UpstreamConfig
from moat.errors import StartError, UsageError
from moat.runtime.plugins.declared import Origin
from moat.runtime.plugins.git import Access, Bounds, FetchError, fetched
from moat.runtime.plugins.resolve import State
from moat.runtime.plugins.source import Source
from moat.runtime.plugins.trees import Trees
from moat.vault.ssh import SshGrant
from tests.fakes.git_https import HOST, GitServer, commit
from tests.fakes.plugins import write_marketplace, write_plugin
from tests.runtime.plugin_kit import Kit, greeting
from tests.ssh.world import make_key, sshd

ID = "hello@tools"


@pytest.fixture
def kit(home: Path, tmp_path: Path, monkeypatch):
    for name in ("GIT_SSL_CAINFO", "SSL_CERT_FILE"):  # of a machine behind a company proxy
        monkeypatch.delenv(name, raising=False)
    workspace, sources = tmp_path / "workspace", tmp_path / "sources"
    for place in (workspace, sources, home / ".moat"):
        place.mkdir(mode=0o700, exist_ok=True)
    with GitServer(tmp_path / "served") as server:
        yield Kit(user=home, workspace=workspace, server=server, sources=sources)


def named(kit: Kit, ref: str = "") -> str:
    """agent.yaml with one plugin of the server's marketplace."""
    return f"""
claude:
  plugins: {{"{ID}": true}}
  marketplaces:
    tools: {{source: git, url: "{kit.server.url("acme/tools.git")}"{f', ref: "{ref}"' if ref else ""}}}
"""


def host_names(kit: Kit, *, enabled: bool = True, url: str | None = None) -> None:
    """As `claude plugin marketplace add` and `claude plugin enable` leave it, without a clone."""
    place = kit.user / ".claude/plugins/marketplaces/tools"
    source = {"source": "git", "url": url or kit.server.url("acme/tools.git")}
    kit.settings("known", {"tools": {"source": source, "installLocation": str(place)}})
    kit.settings("host", {"enabledPlugins": {ID: enabled}})


# --- fetching and pinning -------------------------------------------------------------------------


def test_what_agent_yaml_names_is_fetched_once_and_pinned(kit):
    first = kit.publish(word="ONE")
    kit.config(named(kit))
    plugin = kit.plugin()
    assert (plugin.state, plugin.version, plugin.commit, greeting(plugin)) == ("ready", "1.2.3", first, "ONE")
    assert os.access(plugin.tree / "bin/hook", os.X_OK)
    assert not os.access(plugin.tree / "commands/greet.md", os.X_OK)
    asked = len(kit.server.requests)
    second = kit.publish(word="TWO")
    assert greeting(kit.plugin()) == "ONE"
    assert len(kit.server.requests) == asked  # nothing was asked, let alone fetched
    fresh = kit.plugin(refresh=True)
    assert (fresh.commit, greeting(fresh)) == (second, "TWO")
    assert greeting(kit.plugin()) == "TWO"


def test_a_pin_outlives_the_cache_and_the_branch(kit):
    """Without the files but with the pin the same commit is fetched, although the branch has moved on."""
    first = kit.publish(word="ONE")
    kit.config(named(kit))
    kit.plugin()
    kit.publish(word="TWO")
    subprocess.run(["rm", "-rf", kit.user / ".moat/cache"], check=True)
    plugin = kit.plugin()
    assert (plugin.commit, greeting(plugin)) == (first, "ONE")


def test_a_ref_is_a_branch_a_tag_or_a_commit(kit):
    first = kit.publish(word="ONE")
    work = kit.sources / "acme-tools.git"
    subprocess.run(["git", "-C", work, "tag", "v1"], check=True)
    second = kit.publish(word="TWO")
    subprocess.run(["git", "-C", work, "checkout", "-q", "-b", "next"], check=True)
    third = kit.publish(word="THREE")
    for ref, expected in {
        "": (second, "TWO"),
        "main": (second, "TWO"),
        "next": (third, "THREE"),
        "v1": (first, "ONE"),
        first: (first, "ONE"),
        first[:9]: (first, "ONE"),
    }.items():
        kit.config(named(kit, ref))
        plugin = kit.plugin()
        assert (plugin.commit, greeting(plugin)) == expected, ref
    kit.config(named(kit, "nowhere"))
    assert kit.problem().endswith("https: no branch or tag 'nowhere'")


def test_a_marketplace_may_have_its_plugins_elsewhere(kit):
    write_plugin(kit.sources / "solo", word="SOLO", version=None)
    solo = kit.push(kit.sources / "solo", "acme/solo.git")
    write_plugin(kit.sources / "mono/deep/inside", word="MONO", version="2.0.0")
    mono = kit.push(kit.sources / "mono", "acme/mono.git")
    write_plugin(kit.sources / "solo", word="LATER")
    kit.push(kit.sources / "solo", "acme/solo.git")
    kit.publish(
        plugins={
            "solo": {"source": "url", "url": kit.server.url("acme/solo.git"), "sha": solo},
            "mono": {"source": "git-subdir", "url": kit.server.url("acme/mono.git"), "path": "deep/inside"},
            "npm": {"source": "npm", "package": "x"},
        }
    )
    on = 'plugins: {"solo@tools": true, "mono@tools": true}'
    kit.config(named(kit).replace(f'plugins: {{"{ID}": true}}', on))
    resolved = kit.resolve()
    assert [problem.text for problem in resolved.problems] == []
    mono_plugin, solo_plugin = resolved.plugins
    assert (solo_plugin.version, solo_plugin.commit, greeting(solo_plugin)) == (solo[:12], solo, "SOLO")
    assert (mono_plugin.version, mono_plugin.commit, greeting(mono_plugin)) == ("2.0.0", mono, "MONO")
    kit.config(named(kit).replace(ID, "npm@tools"))
    assert "plugins from 'npm' are not fetched by Moat" in kit.problem()
    kit.config(named(kit).replace(ID, "sol@tools"))
    assert "it has no plugin 'sol'; did you mean 'solo'?" in kit.problem()


def test_links_between_plugins_of_one_marketplace_are_resolved(kit):
    """A plugin may share files with others of its repository; alone in the sandbox it still has them."""
    work = kit.sources / "acme-tools.git"
    write_marketplace(work)
    (work / "shared").mkdir()
    (work / "shared/text.md").write_text("SHARED")
    (work / "plugins/hello/shared").symlink_to("../../shared")
    (work / "plugins/hello/skills.md").symlink_to("commands/greet.md")
    kit.push(work, "acme/tools.git")
    kit.config(named(kit))
    plugin = kit.plugin()
    assert (plugin.tree / "shared/text.md").read_text() == "SHARED"
    assert not (plugin.tree / "shared").is_symlink()
    assert os.readlink(plugin.tree / "skills.md") == "commands/greet.md"
    assert os.access(plugin.tree / "bin/hook", os.X_OK)


# --- who counts -----------------------------------------------------------------------------------


def test_host_user_project_config_in_this_order(kit):
    kit.trust_server()
    kit.publish()
    host_names(kit, enabled=True)
    plugin = kit.plugin()
    assert (plugin.state, plugin.choice.origin, plugin.choice.file) == (
        State.READY,
        Origin.HOST,
        "~/.claude/settings.json",
    )
    for place, on, origin in (
        ("user", False, Origin.USER),
        ("project", True, Origin.PROJECT),
        ("config", False, Origin.CONFIG),
    ):
        if place == "config":
            kit.config(f'claude: {{plugins: {{"{ID}": {str(on).lower()}}}}}')
        else:
            kit.settings(place, {"enabledPlugins": {ID: on}})
        plugin = kit.plugin()
        assert (plugin.choice.enabled, plugin.choice.origin) == (on, origin), place
        assert plugin.state is (State.READY if on else State.DISABLED)


def test_the_host_can_be_left_out(kit, monkeypatch):
    kit.trust_server()
    kit.publish()
    host_names(kit)
    monkeypatch.setenv("MOAT_SKIP_HOST_CLAUDE_SETTINGS", "1")
    resolved = kit.resolve()
    assert (resolved.plugins, resolved.marketplaces, resolved.problems) == ((), (), ())


def test_the_hosts_own_installation_and_clone_need_no_network(kit):
    """The version that the user has is the one that the sandbox gets."""
    first = kit.publish(word="ONE")
    host_names(kit)
    clone = kit.user / ".claude/plugins/marketplaces/tools"
    bare = kit.server.directory / "acme/tools.git"
    subprocess.run(["git", "clone", "-q", bare, clone], check=True)
    (clone / "plugins/hello/commands/greet.md").write_text("changed and not committed")
    kit.publish(word="TWO")
    plugin = kit.plugin()
    assert (plugin.commit, greeting(plugin)) == (first, "ONE")
    installed = kit.user / ".claude/plugins/cache/tools/hello/0.9.0"
    write_plugin(installed, word="INSTALLED", version="0.9.0")
    entry = {"scope": "user", "installPath": str(installed), "version": "0.9.0", "gitCommitSha": "c" * 40}
    kit.settings("installed", {"version": 2, "plugins": {ID: [entry]}})
    plugin = kit.plugin()
    assert (plugin.version, plugin.commit, plugin.tree, greeting(plugin)) == (
        "0.9.0",
        "c" * 40,
        installed,
        "INSTALLED",
    )
    assert kit.server.requests == []


def test_offline_says_what_would_be_fetched_and_fetches_nothing(kit):
    kit.publish()
    kit.config(named(kit))
    resolved = kit.resolve(offline=True)
    assert [plugin.state for plugin in resolved.plugins] == [State.NOT_FETCHED]
    assert [market.state for market in resolved.marketplaces] == [State.NOT_FETCHED]
    assert (resolved.problems, kit.server.requests) == ((), [])


def test_a_directory_is_a_marketplace(kit):
    write_marketplace(kit.workspace / "market", word="LOCAL")
    kit.config(
        f'claude: {{plugins: {{"{ID}": true}}, marketplaces: {{tools: {{source: directory, path: market}}}}}}'
    )
    plugin = kit.plugin()
    assert (plugin.inside, greeting(plugin), plugin.commit) == ("plugins/hello", "LOCAL", None)
    before = plugin.tree
    assert kit.plugin().tree == before
    write_marketplace(kit.workspace / "market", word="EDITED")
    assert greeting(kit.plugin()) == "EDITED"
    assert greeting(plugin) == "LOCAL"  # a running sandbox keeps what it has


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w: (w / ".claude-plugin/marketplace.json").write_text("{"),
            "marketplace.json is not valid JSON in line 1",
        ),
        (
            lambda w: (w / ".claude-plugin/marketplace.json").write_text("[]"),
            "marketplace.json is not a JSON object",
        ),
        (
            lambda w: (w / ".claude-plugin/marketplace.json").unlink(),
            "it has no .claude-plugin/marketplace.json",
        ),
        (
            lambda w: (w / "plugins/hello/.claude-plugin/plugin.json").write_text("{"),
            "its plugin.json is not valid JSON",
        ),
        (
            lambda w: subprocess.run(["rm", "-r", w / "plugins"], check=True),
            "the directory of 'hello' is not there",
        ),
    ],
)
def test_a_broken_marketplace_is_an_error_with_its_reason(kit, change, said):
    kit.publish()
    work = kit.sources / "acme-tools.git"
    change(work)
    kit.push(work, "acme/tools.git")
    kit.config(named(kit))
    assert said in kit.problem()
    assert [plugin.state for plugin in kit.resolve().plugins] == [State.MISSING]


def test_an_unknown_marketplace_and_an_unreachable_one(kit):
    kit.config('claude: {plugins: {"hello@nowhere": true}}')
    assert kit.problem() == "plugin hello@nowhere (agent.yaml): no marketplace 'nowhere' is known"
    kit.config(named(kit).replace("acme/tools.git", "acme/absent.git"))
    (problem,) = kit.resolve().problems
    assert problem.text.startswith("failed to fetch marketplace tools (git https://git.example.test:")
    assert "named in agent.yaml): https: " in problem.text
    assert f"`moat grant ssh --host {HOST}`, then `--grant ssh:{HOST}`" in problem.hint


def test_the_official_marketplace_is_known_by_name_and_fails_in_the_guides_words(kit):
    kit.trust_server()
    kit.settings("project", {"enabledPlugins": {"formatter@claude-plugins-official": True}})
    (problem,) = kit.resolve(environ=offline_environ(kit)).problems
    assert problem.text.startswith("Failed to install Anthropic marketplace: https: ")
    assert "; ssh: " in problem.text
    assert problem.origin is Origin.PROJECT


def offline_environ(kit: Kit) -> dict[str, str]:
    """Ssh that reaches nobody; https is led to the test's own server."""
    return {"PATH": os.environ["PATH"], "HOME": str(kit.user), "GIT_SSH_COMMAND": "false"}


# --- hostile repositories -------------------------------------------------------------------------


def hostile(kit: Kit, change) -> str:
    """The problem with a marketplace whose tree `change` has made."""
    work = kit.sources / "acme-tools.git"
    write_marketplace(work)
    change(work)
    kit.push(work, "acme/tools.git")
    kit.config(named(kit))
    return kit.problem()


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../../../../../etc/passwd", "deep/../../../../x", "../../.."]
)
def test_a_link_out_of_the_repository_is_refused(kit, target):
    """Seen failing with `escapes` returning False: the link was kept, and manifest.py read through it."""
    text = hostile(kit, lambda work: (work / "plugins/hello/leak").symlink_to(target))
    assert text.endswith("the link plugins/hello/leak leads out of the directory")
    assert not list((kit.user / ".moat/cache/claude/trees").glob("git-*"))


def test_a_link_through_a_link_out_of_the_repository_is_refused(kit):
    """`deep/up` leads to the top; behind it `..` leaves, although the text alone seems to stay inside."""

    def change(work: Path) -> None:
        (work / "deep").mkdir()
        (work / "deep/up").symlink_to("..")
        (work / "leak").symlink_to("deep/up/../x")

    assert hostile(kit, change).endswith("the link leak leads out of the directory")


def test_a_manifest_that_is_a_link_to_a_secret_is_not_read(kit):
    secret = kit.user / "secret.json"
    secret.write_text('{"plugins": [{"name": "PRIVATE"}]}')

    def change(work: Path) -> None:
        (work / ".claude-plugin/marketplace.json").unlink()
        (work / ".claude-plugin/marketplace.json").symlink_to(secret)

    text = hostile(kit, change)
    assert "leads out of the directory" in text
    assert "PRIVATE" not in text


@pytest.mark.parametrize("source", ["../../etc", "./../../x", "/etc", "./a/../../b", "plugins/../.."])
def test_a_plugin_source_that_leaves_the_repository_is_refused(kit, source):
    kit.publish(plugins={"hello": source})
    kit.config(named(kit))
    text = kit.problem()
    assert "leads out of the repository" in text or "does not begin with ./" in text


@pytest.mark.parametrize(
    "source",
    [
        {"source": "url", "url": "ext::sh -c 'touch PWNED'"},
        {"source": "url", "url": "--upload-pack=touch PWNED"},
        {"source": "url", "url": "file:///etc"},
        {"source": "url", "url": "http://git.example.test/x.git"},
        {"source": "url", "url": "ssh://-oProxyCommand=touch%20PWNED/x"},
        {"source": "url", "url": "-oProxyCommand=x@host:repo"},
        {"source": "github", "repo": "../../x"},
        {"source": "github", "repo": "a/b", "ref": "--upload-pack=x"},
        {"source": "git-subdir", "url": "https://git.example.test/x.git", "path": "../../../etc"},
        {"source": "command", "command": "touch PWNED"},
    ],
)
def test_a_plugin_source_that_would_run_something_is_refused(kit, source):
    kit.publish(plugins={"hello": source})
    kit.config(named(kit))
    asked = len(kit.server.requests)
    assert "marketplace tools: plugin 'hello': " in kit.problem()
    assert len(kit.server.requests) > asked  # the marketplace itself was read
    assert not list(kit.workspace.parent.rglob("PWNED"))


@pytest.mark.parametrize("kind", ["npm", "archive", "command", "pip"])
def test_what_is_no_git_repository_is_refused_with_the_reason(kit, kind):
    """As a plugin, and as a marketplace that a project names."""
    kit.publish(plugins={"hello": {"source": kind, "package": "touch PWNED", "url": "https://x.test/a.zip"}})
    kit.config(named(kit))
    reason = {
        "npm": "may bring scripts", "archive": "not a commit", "command": "would run on this machine",
    }.get(kind, "only commits of git repositories are")  # fmt: skip
    for text in (kit.problem(), project_marketplace(kit, kind)):
        assert f"from '{kind}' are not fetched by Moat" in text
        assert reason in text
        assert "install it with Claude Code on this machine" in text


def project_marketplace(kit: Kit, kind: str) -> str:
    """What is said of a marketplace of that kind."""
    kit.config("")
    known = {"tools": {"source": {"source": kind, "package": "x"}}}
    kit.settings("project", {"enabledPlugins": {ID: True}, "extraKnownMarketplaces": known})
    return kit.problem()


def test_a_repository_that_is_too_large_or_too_many_is_refused(kit, tmp_path):
    work = kit.sources / "acme-tools.git"
    write_marketplace(work)
    (work / "big").write_bytes(os.urandom(3 << 20))
    kit.push(work, "acme/tools.git")
    source = Source(kind="git", location=kit.server.url("acme/tools.git"))
    access = Access(own=False, upstream=kit.upstream)
    with pytest.raises(FetchError, match="https: larger than 1 MiB"):
        with fetched(source, access, Bounds(pack=1 << 20), tmp_path):
            pass
    assert not list(tmp_path.glob("fetch-*"))
    for bounds, said in (
        (Bounds(file=1 << 20), "big is larger than 1 MiB"),
        (Bounds(total=1 << 20), "more than 1 MiB of files"),
        (Bounds(files=3), "more than 3 files"),
    ):
        kit.config(named(kit))
        assert said in kit.problem(bounds=bounds)


def test_a_server_that_does_not_answer_is_given_up(kit, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        upstream = UpstreamConfig(connect_to={(HOST, port): ("127.0.0.1", port)})
        source = Source(kind="git", location=f"https://{HOST}:{port}/x.git")
        with pytest.raises(FetchError, match="https: no answer within 1 s"):
            with fetched(source, Access(own=False, upstream=upstream), Bounds(seconds=1), tmp_path):
                pass


# --- what a workspace must not cause --------------------------------------------------------------


def test_a_workspace_gets_nothing_that_needs_the_users_credentials(kit):
    """The user's helper, netrc and rewritten URLs are not for what a stranger's agent.yaml names.

    Seen failing without `_without_credentials`: the private repository was fetched.
    """
    kit.publish()
    kit.server.password = "hunter2"
    (kit.user / ".git-credentials").write_text(f"https://user:hunter2@{HOST}:{kit.server.port}\n")
    (kit.user / ".netrc").write_text(f"machine {HOST} login user password hunter2\n")
    (kit.user / ".gitconfig").write_text(
        f"[credential]\n\thelper = store\n[http]\n\tsslCAInfo = {kit.server.ca_file}\n"
        f'[url "https://user:hunter2@localhost:{kit.server.port}/"]\n\tinsteadOf = https://{HOST}:{kit.server.port}/\n'
    )
    kit.config(named(kit))
    text = kit.problem()
    assert "failed to fetch marketplace tools" in text
    assert {authorization for _, authorization in kit.server.requests} == {None}
    # The same place, named by the user: their credentials are used, for the workspace's file too.
    kit.settings(
        "user",
        {
            "extraKnownMarketplaces": {
                "mine": {"source": {"source": "git", "url": kit.server.url("acme/tools.git")}}
            }
        },
    )
    assert kit.plugin().state is State.READY
    # And it does not become a stranger's by having been fetched once.
    kit.settings("user", {})
    assert "failed to fetch marketplace tools" in kit.problem()


def test_a_workspace_cannot_have_this_machines_network_read(kit):
    """Seen failing without the check of addresses: the server on loopback was asked."""
    kit.publish()
    kit.config(named(kit).replace(HOST, "localhost"))
    upstream = UpstreamConfig(ca_bundle=kit.server.ca_file)
    assert "localhost is 127.0.0.1 (loopback)" in kit.problem(upstream=upstream) or "::1" in kit.problem(
        upstream=upstream
    )
    assert kit.server.requests == []


def test_a_workspace_cannot_be_led_elsewhere_by_a_redirect(kit):
    """Seen failing with redirects followed: a public host led to one that only this machine reaches."""
    kit.publish()
    kit.config(named(kit))
    kit.server.redirect = f"https://localhost:{kit.server.port}"
    assert "failed to fetch marketplace tools" in kit.problem()
    assert len({path for path, _ in kit.server.requests}) == 1


def test_a_projects_settings_name_no_directory_outside_of_the_workspace(kit, tmp_path):
    write_marketplace(tmp_path / "outside")
    source = {"source": "directory", "path": str(tmp_path / "outside")}
    (kit.workspace / "in").symlink_to(tmp_path / "outside")
    for place in (source, source | {"path": "./in"}, source | {"path": "../outside"}):
        kit.settings(
            "project", {"extraKnownMarketplaces": {"tools": {"source": place}}, "enabledPlugins": {ID: True}}
        )
        assert "lies outside of the workspace, whose settings must not name it" in kit.problem()


def test_a_directory_that_becomes_a_link_after_it_was_judged_is_not_copied(kit, tmp_path, monkeypatch):
    """Seen failing before places were opened as they were judged: a sandbox would have got what the link leads to."""
    write_marketplace(tmp_path / "outside")
    write_marketplace(kit.workspace / "in")
    source = {"source": {"source": "directory", "path": "./in"}}
    kit.settings("project", {"extraKnownMarketplaces": {"tools": source}, "enabledPlugins": {ID: True}})
    copy = Trees.of_directory

    def after_the_swap(trees: Trees, directory: Path, within: Path | None = None) -> Path:
        (kit.workspace / "in").rename(kit.workspace / "was")
        (kit.workspace / "in").symlink_to(tmp_path / "outside")
        return copy(trees, directory, within)

    monkeypatch.setattr(Trees, "of_directory", after_the_swap)
    assert "leads out of the directory" in kit.problem()
    assert not list((kit.user / ".moat/cache/claude/trees").glob("dir-*"))


def test_a_directory_that_was_asked_about_is_not_another_one_afterwards(kit, tmp_path):
    """Seen to fail without the link followed when it is named, and without the look at what it has become."""
    write_marketplace(tmp_path / "meant")
    write_marketplace(tmp_path / "other", word="TWO")
    (kit.workspace / "in").symlink_to(tmp_path / "meant")
    kit.config(
        f'claude: {{plugins: {{"{ID}": true}}, marketplaces: {{tools: {{source: directory, path: in}}}}}}'
    )
    declared = kit.declared()
    assert declared.borrowed(kit.workspace) == {str(tmp_path / "meant"): "agent.yaml"}
    (kit.workspace / "in").unlink()
    (kit.workspace / "in").symlink_to(tmp_path / "other")
    market = kit.resolve(declared=declared).marketplaces[0]
    assert market.tree is not None
    assert "GREETING ONE" in (market.tree / "plugins/hello/commands/greet.md").read_text()
    (tmp_path / "meant").rename(tmp_path / "away")
    (tmp_path / "meant").symlink_to(tmp_path / "other")
    assert "has become a link" in kit.problem(declared=declared)


_TOOLS = {"extraKnownMarketplaces": {"tools": {"source": {"source": "github", "repo": "acme/tools"}}}}
_HELLO = {"enabledPlugins": {ID: True}}


@pytest.mark.parametrize(
    ("config", "project", "own", "asked"),
    [
        ("{}", _HELLO, _TOOLS, {"github acme/tools": ".claude/settings.json"}),
        (f'{{claude: {{plugins: {{"{ID}": true}}}}}}', {}, _TOOLS, {"github acme/tools": "agent.yaml"}),
        ("{}", _HELLO, _TOOLS | _HELLO, {}),
        ("{}", {"enabledPlugins": {ID: False}}, _TOOLS, {}),
        ("{}", {}, _TOOLS | _HELLO, {}),
        ("{}", _TOOLS | _HELLO, {}, {}),
        (
            "{claude: {marketplaces: {x: {source: git, url: 'https://git.test/a/B.git', ref: next}}}}",
            {},
            {"extraKnownMarketplaces": {"y": {"source": {"source": "git", "url": "https://git.test/a/b"}}}},
            {"git https://git.test/a/B.git at next": "agent.yaml"},
        ),
        ("{}", {"enabledPlugins": {"x@claude-plugins-official": True}}, {}, {}),
        ("{claude: {marketplaces: {m: {source: directory, path: in}}}}", {}, {}, {}),
        (
            "{}",
            _HELLO,
            {"extraKnownMarketplaces": {"tools": {"source": {"source": "npm", "package": "@acme/tools"}}}},
            {"npm tools": ".claude/settings.json"},
        ),
    ],
)
def test_what_of_the_users_own_a_workspace_brings_in(kit, config, project, own, asked):
    """Seen to fail without each of the conditions in `borrowed` and `lent_to`."""
    kit.config(config)
    kit.settings("project", project)
    kit.settings("host", own)
    assert kit.declared().borrowed(kit.workspace) == asked


def test_agent_yaml_names_no_directory_with_credentials(kit):
    (kit.user / ".ssh").mkdir()
    write_marketplace(kit.user)
    kit.config(
        f'claude: {{plugins: {{"{ID}": true}}, marketplaces: {{tools: {{source: directory, path: "{kit.user}"}}}}}}'
    )
    assert "a sandbox must not see them" in kit.problem() or "Moat's own state" in kit.problem()


def test_agent_yaml_names_no_hidden_directory_of_the_user(kit):
    """A marketplace that is only the user's, say, of which Claude Code keeps a clone there. As for mounts."""
    private = kit.user / ".claude/plugins/marketplaces/private"
    write_marketplace(private)
    kit.config(
        f'claude: {{plugins: {{"{ID}": true}}, marketplaces: {{tools: {{source: directory, path: "{private}"}}}}}}'
    )
    assert "is one of your hidden files" in kit.problem()
    kit.settings(
        "user",
        {"extraKnownMarketplaces": {"mine": {"source": {"source": "directory", "path": str(private)}}}},
    )
    assert not kit.resolve().problems, "the user has named it as well"


def test_a_link_in_a_directory_does_not_carry_foreign_files_in(kit):
    write_marketplace(kit.workspace / "market")
    (kit.workspace / "market/plugins/hello/leak").symlink_to(kit.user)
    kit.config(
        f'claude: {{plugins: {{"{ID}": true}}, marketplaces: {{tools: {{source: directory, path: market}}}}}}'
    )
    assert kit.problem().endswith("leads out of the directory")


def test_settings_of_the_project_that_lead_out_of_it_are_not_read(kit):
    (kit.user / "secret.json").write_text('{"enabledPlugins": {"PRIVATE@x": true}}')
    (kit.workspace / ".claude").mkdir()
    (kit.workspace / ".claude/settings.json").symlink_to(kit.user / "secret.json")
    text = kit.problem()
    assert text == ".claude/settings.json: a link that leads out of the workspace is not followed"


@pytest.fixture
def agent() -> Iterator[Callable[[Path], str]]:
    """`agent(key)`: the socket of a real ssh-agent that holds it."""
    place = Path(tempfile.mkdtemp(prefix="pa-", dir="/tmp"))
    sock = str(place / "s")
    with subprocess.Popen(["ssh-agent", "-D", "-a", sock], stdout=subprocess.DEVNULL) as process:

        def add(key: Path) -> str:
            for _ in range(100):
                if os.path.exists(sock):
                    break
                time.sleep(0.05)
            subprocess.run(["ssh-add", "-q", key], env=dict(os.environ) | {"SSH_AUTH_SOCK": sock}, check=True)
            return sock

        yield add
        process.terminate()
    shutil.rmtree(place, ignore_errors=True)


def test_a_grant_opens_its_host_with_its_key_and_no_other(kit, agent):
    """A real sshd that would let in both keys; the user's agent offers the other one.

    Seen failing without IdentitiesOnly: the key of the agent was used.
    """
    granted, other = (make_key(kit.user / name) for name in ("granted", "other"))
    place = Path(tempfile.mkdtemp(prefix="pl-", dir="/tmp"))
    place.chmod(0o755)
    try:
        with sshd("git.moat.test", place / "s", [granted, other]) as server:
            known = kit.user / "known"
            known.write_text(f"git.moat.test {server.host_key}\n")
            kind, key = Path(f"{granted}.pub").read_text().split()[:2]
            assert kind == "ssh-ed25519"
            grant = SshGrant(
                host="git.moat.test",
                hostname="127.0.0.1",
                port=server.port,
                known_as="git.moat.test",
                known_hosts=(str(known),),
                key=base64.b64decode(key),
                key_path=str(granted),
            )
            work = kit.sources / "ssh"
            write_marketplace(work)
            pinned = commit(work, place / "s/octo/market.git")
            url = f"git@git.moat.test:{place}/s/octo/market.git"
            kit.config(named(kit).replace(kit.server.url("acme/tools.git"), url))
            assert "ssh: needs the grant ssh:git.moat.test" in kit.problem()
            plugin = kit.plugin(ssh=[grant], environ=dict(os.environ) | {"SSH_AUTH_SOCK": agent(other)})
            assert (plugin.commit, greeting(plugin)) == (pinned, "ONE")
            fingerprint = subprocess.check_output(["ssh-keygen", "-lf", granted], text=True).split()[1]
            assert set(server.accepted()) == {fingerprint}
            # What was fetched with a grant is not there for a run without it, pinned or not.
            assert "ssh: needs the grant ssh:git.moat.test" in kit.problem()
            known.write_text("")
            assert "host key is known for git.moat.test" in kit.problem(ssh=[grant], refresh=True)
    finally:
        shutil.rmtree(place)


def test_ssh_is_for_whom_a_grant_opens_the_host(kit, tmp_path):
    """Seen failing without the test in `environment`: git started ssh for an ungranted host."""
    marker = tmp_path / "ssh-was-started"
    environ = dict(os.environ) | {"GIT_SSH_COMMAND": f"touch {marker}; false"}
    source = Source(kind="git", location=f"git@{HOST}:acme/tools.git")
    with pytest.raises(FetchError, match=f"ssh: needs the grant ssh:{HOST}"):
        with fetched(source, Access(own=False, environ=environ), Bounds(), tmp_path):
            pass
    assert not marker.exists()
    with pytest.raises(FetchError):
        with fetched(source, Access(own=True, environ=environ), Bounds(), tmp_path):
            pass
    assert marker.exists()


def test_a_changed_project_file_may_stop_a_fetch(kit):
    kit.publish()
    url = kit.server.url("acme/tools.git")
    kit.settings(
        "project",
        {
            "extraKnownMarketplaces": {"tools": {"source": {"source": "git", "url": url}}},
            "enabledPlugins": {ID: True},
        },
    )

    def refuse(origin: Origin) -> None:
        raise UsageError(f"fetched for {origin}")

    with pytest.raises(UsageError, match="fetched for project"):
        kit.resolve(before_fetch=refuse)
    kit.resolve()
    assert kit.plugin(before_fetch=refuse).state is State.READY  # pinned: nothing is fetched


def test_two_processes_fetch_the_same_at_once(kit):
    commit_ = kit.publish()
    kit.config(named(kit))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: kit.resolve(), range(3)))
    assert {plugin.commit for resolved in found for plugin in resolved.plugins} == {commit_}
    assert not list((kit.user / ".moat/cache/claude/trees/.new").iterdir())


def test_urls_with_a_credential_do_not_reach_the_sandbox(kit):
    from moat.runtime.plugins.deliver import deliver

    kit.trust_server()
    kit.publish()
    kit.server.password = "hunter2"
    host_names(kit, url=f"https://user:hunter2@localhost:{kit.server.port}/acme/tools.git")
    resolved = kit.resolve()
    assert [problem.text for problem in resolved.problems] == []
    shown = deliver(resolved, {})
    assert b"hunter2" not in b"".join(file.data for file in shown.home_files)
    kept = (kit.user / ".moat/claude/plugins.lock.json").read_text()
    assert "hunter2" not in kept
    assert b"tools" in b"".join(file.data for file in shown.home_files)


# --- a run that a program starts -------------------------------------------------------------------


def serve_as_public(kit: Kit) -> None:
    """The server, for a run: as the user's own config leads there."""
    port = kit.server.port
    (kit.user / ".moat/config.yaml").write_text(
        f'upstream:\n  ca_bundle: {kit.server.ca_file}\n  connect_to: {{"{HOST}:{port}": "127.0.0.1:{port}"}}\n'
    )


@pytest.mark.embedded
@pytest.mark.anyio
async def test_a_run_makes_the_plugins_of_its_request_ready_and_records_the_fetch(kit, monkeypatch, capsys):
    """Its own settings stay; the project's, which say otherwise, do not count. Seen to fail without `tell`."""
    import moat.runtime
    from moat.cli import trace

    monkeypatch.setenv("MOAT_RUNTIME", "embedded")
    pinned = kit.publish()
    serve_as_public(kit)
    kit.settings("project", {"enabledPlugins": {"hello@tools": False}})
    source = moat.runtime.Marketplace(source="git", location=kit.server.url("acme/tools.git"))
    wanted = moat.runtime.PluginsConfig(plugins={"hello@tools": True}, marketplaces={"tools": source})
    command = kit.workspace / "claude"
    command.write_text(
        '#!/bin/sh\necho "words: $*"; cat ~/.claude/settings.json ~/.claude/plugins/cache/tools/hello/*/commands/*\n'
    )
    command.chmod(0o755)
    argv = ["/workspace/claude", "-p", "hi"]
    async with moat.runtime.start(argv, workspace=kit.workspace, plugins=wanted, name="one") as run:
        out = b"".join([chunk.data async for chunk in run.output()]).decode()
    assert "words: --settings /home/agent/.claude/moat-settings.json -p hi\n" in out
    assert '"hello@tools": true' in out
    assert "GREETING ONE" in out
    (entry,) = [e for e in moat.runtime.read_journal("one") if e.event == "plugin.fetched"]
    assert entry.data == {
        "what": "marketplace tools", "source": f"git {kit.server.url('acme/tools.git')}", "host": HOST,
        "commit": pinned, "by": "config", "error": "",
    }  # fmt: skip
    assert trace.main(["--network", "one"]) == 0
    shown = capsys.readouterr().out
    assert f"FETCH {HOST} marketplace tools at {pinned[:12]} (by this machine, named by config)" in shown


@pytest.mark.embedded
@pytest.mark.anyio
async def test_a_run_whose_plugins_cannot_be_had_does_not_begin_and_the_attempt_is_recorded(kit, monkeypatch):
    import moat.runtime

    monkeypatch.setenv("MOAT_RUNTIME", "embedded")
    serve_as_public(kit)
    source = moat.runtime.Marketplace(source="git", location=kit.server.url("acme/nothing.git"))
    wanted = moat.runtime.PluginsConfig(plugins={"hello@tools": True}, marketplaces={"tools": source})
    with pytest.raises(StartError, match="failed to fetch marketplace tools"):
        async with moat.runtime.start(["true"], workspace=kit.workspace, plugins=wanted, name="two"):
            pass
    (entry,) = [e for e in moat.runtime.read_journal("two") if e.event == "plugin.fetched"]
    assert (entry.data["host"], entry.data["commit"]) == (HOST, "")
    assert entry.data["error"].startswith("https: ")
