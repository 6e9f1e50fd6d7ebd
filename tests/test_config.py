"""agent.yaml and config.yaml: what they may say, and that every mistake is told with its place."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moat.config import (
    BudgetConfig,
    HostRules,
    Marketplace,
    MountConfig,
    NetworkConfig,
    RunConfig,
    load,
    load_user,
)
from moat.errors import ConfigError
from moat.paths import Home


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


def write(workspace: Path, text: str | bytes, name: str = "agent.yaml") -> Path:
    (workspace / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return workspace


def problems(workspace: Path, text: str | bytes) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(write(workspace, text))
    return caught.value.problems


# --- what it may say --------------------------------------------------------------------------------


def test_without_a_file_everything_has_its_default(workspace):
    assert load(workspace) == RunConfig()


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "{}", "\ufeff"])
def test_an_empty_file_says_nothing(workspace, text):
    assert load(write(workspace, text)) == RunConfig(path=workspace / "agent.yaml")


@pytest.mark.parametrize("name", ["agent.yaml", "moat.yaml"])
def test_every_key(workspace, name):
    (workspace / "data").mkdir()
    text = """\
name: code-review
agent: claude
grants: [anthropic, github, "ssh:github.com", anthropic]
env:
  DEBUG: "1"
  PORT: 8080
  EMPTY: ""
  ANSWER: yes
mounts:
  - data:/data:ro
  - ./data:/workspace/more
network:
  policy: strict
  rules:
    - api.example.com
    - "*.Example.org:8443"
    - "api.github.com": ["allow GET /repos/**", "deny * /admin/*"]
  host: [5432, 6379]
runtime: embedded
command: [npm, test, 3]
dependencies: [node@22, "python@3.11", git]
base_image: debian:bookworm-slim
"""
    found = load(write(workspace, text, name))
    assert found == RunConfig(
        path=workspace / name,
        name="code-review",
        agent="claude",
        grants=("anthropic", "github", "ssh:github.com"),
        env={"DEBUG": "1", "PORT": "8080", "EMPTY": "", "ANSWER": "yes"},
        mounts=(
            MountConfig(workspace / "data", "/data", read_only=True),
            MountConfig(workspace / "data", "/workspace/more"),
        ),
        network=NetworkConfig(
            policy="strict",
            rules=(
                HostRules("api.example.com"),
                HostRules("*.example.org:8443"),
                HostRules("api.github.com", ("allow GET /repos/**", "deny * /admin/*")),
            ),
            host=(5432, 6379),
        ),
        runtime="embedded",
        command=("npm", "test", "3"),
        dependencies=("node@22", "python@3.11", "git"),
        base_image="debian:bookworm-slim",
    )


def test_budgets_and_the_mode_of_the_network(workspace):
    text = """\
network:
  mode: warn
  rules:
    - "*": [deny DELETE /**, "warn  POST /**"]
  budget:
    requests: 5000
    requests_per_minute: 120
    bytes_per_minute: 50MB
    upload: 64KiB
    download: 2 GB
    response: 1048576
    hosts:
      "*.Example.com:*": {requests: 10}
      "*": {download: 1MB}
"""
    network = load(write(workspace, text)).network
    assert network.mode == "warn"
    assert network.rules == (HostRules("*", ("deny DELETE /**", "warn POST /**")),)
    assert network.budgets == (
        BudgetConfig(
            requests=5000,
            requests_per_minute=120,
            bytes_per_minute=50_000_000,
            upload=65536,
            download=2_000_000_000,
            response=1048576,
        ),
        BudgetConfig(host="*.example.com:*", requests=10),
        BudgetConfig(host="*", download=1_000_000),
    )


def test_an_alias_repeats_a_value(workspace):
    text = "network: {rules: [{a.test: &r [allow GET /x]}, {b.test: *r}]}"
    rules = load(write(workspace, text)).network.rules
    assert [entry.rules for entry in rules] == [("allow GET /x",), ("allow GET /x",)]


def test_a_link_within_the_workspace_is_followed(workspace):
    (workspace / "etc").mkdir()
    write(workspace / "etc", "name: linked", "moat.yaml")
    (workspace / "agent.yaml").symlink_to("etc/moat.yaml")
    assert load(workspace).name == "linked"


# --- what it may not say ----------------------------------------------------------------------------


def test_all_errors_are_told_at_once_with_their_places(workspace):
    text = """\
name: My App
grnats: [anthropic]
grants:
  - anthropic
  - Git Hub
network:
  polcy: strict
  host: [80, 99999]
runtime: podman
"""
    assert problems(workspace, text) == (
        "agent.yaml:1:7: 'My App' is not a name: lower-case letters, digits and `-`, at most 63",
        "agent.yaml:2:1: unknown key 'grnats'; did you mean 'grants'?",
        "agent.yaml:5:5: 'Git Hub' is not a grant, e.g. anthropic or ssh:github.com",
        "agent.yaml:7:3: unknown key 'polcy'; did you mean 'policy'?",
        "agent.yaml:8:14: a port in network.host must be between 1 and 65535",
        "agent.yaml:9:10: runtime 'podman' is not supported yet",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("env: {VERSION: 3.10}", 'agent.yaml:1:16: env.VERSION must be a string; put it in quotes: "3.10"'),
        ("env: {ON: true}", 'agent.yaml:1:11: env.ON must be a string; put it in quotes: "true"'),
        ("env: {N: 0x10}", 'agent.yaml:1:10: env.N must be a string; put it in quotes: "0x10"'),
        ("env: {N: 007}", 'agent.yaml:1:10: env.N must be a string; put it in quotes: "007"'),
        ("env: {N: 1_000}", 'agent.yaml:1:10: env.N must be a string; put it in quotes: "1_000"'),
        ("env: {D: 2026-01-01}", 'agent.yaml:1:10: env.D must be a string; put it in quotes: "2026-01-01"'),
        ("env: {N: ~}", "agent.yaml:1:10: env.N must be a string, not nothing"),
        ("env: {N: [1]}", "agent.yaml:1:10: env.N must be a string, not a list"),
        ("env: {1N: a}", "agent.yaml:1:7: '1N' is not the name of an environment variable"),
        ("env: {A=B: a}", "agent.yaml:1:7: 'A=B' is not the name of an environment variable"),
        ('env: {A: "a\\0b"}', "agent.yaml:1:10: env.A must not hold control characters"),
        ("env: [A=1]", "agent.yaml:1:6: env must be a mapping, not a list"),
        ("name: 3.10", 'agent.yaml:1:7: name must be a string; put it in quotes: "3.10"'),
        ("grants: anthropic", "agent.yaml:1:9: grants must be a list, e.g. [anthropic, github], not a string"),
        ("grants:", "agent.yaml:1:8: grants has no value; remove the key or give it one"),
        ("command: npm test", "agent.yaml:1:10: command must be a list, e.g. [npm, test], not a string"),
        ("command: []", "agent.yaml:1:10: command must begin with a program"),
        ('command: ["", x]', "agent.yaml:1:10: command must begin with a program"),
        ("dependencies: [node@]", "agent.yaml:1:16: 'node@' has no valid version"),
        ("dependencies: [3.10]", 'agent.yaml:1:16: an entry of dependencies must be a string; put it in quotes: "3.10"'),
        (
            "dependencies: [git, nod@22]",
            "agent.yaml:1:21: unknown dependency 'nod'; did you mean 'node'?",
        ),
        ("base_image: -v", "agent.yaml:1:13: '-v' is not an image, e.g. debian:bookworm-slim"),
        ("network: {policy: open}", "agent.yaml:1:19: network.policy must be one of permissive, strict, ask"),
        (
            "network: {policy: stric}",
            "agent.yaml:1:19: network.policy must be one of permissive, strict, ask; did you mean 'strict'?",
        ),
        ("network: {unreadable: no}", "agent.yaml:1:23: network.unreadable must be one of withhold, pass"),
        ("network: {body_leaks: no}", "agent.yaml:1:23: network.body_leaks must be one of refuse, pass"),
        ("network: {host: [8080.5]}", "agent.yaml:1:18: a port in network.host must be a whole number, not a number"),
        ('network: {host: ["80"]}', "agent.yaml:1:18: a port in network.host must be a whole number, not a string"),
        ("network: {host: [0]}", "agent.yaml:1:18: a port in network.host must be between 1 and 65535"),
        (
            "network: {rules: ['*']}",
            "agent.yaml:1:19: '*' without rules: to allow every host, set network.policy to permissive",
        ),
        (
            "network: {rules: ['a.test:99999']}",
            "agent.yaml:1:19: 'a.test:99999' has a port that is not a plain number from 1 to 65535; a host is e.g. api.example.com, *.example.com or host:8443",
        ),
        (
            "network: {rules: ['https://a.test']}",
            "agent.yaml:1:19: 'https://a.test': only a host and a port, without scheme or path",
        ),
        (
            "network: {rules: [a.test, A.test]}",
            "agent.yaml:1:27: a.test is listed twice; put its rules in one place",
        ),
        (
            "network: {rules: [{a.test: [alow GET /x]}]}",
            "agent.yaml:1:29: 'alow GET /x': a rule begins with allow, deny, warn, not 'alow'",
        ),
        (
            "network: {rules: [{a.test: ['allow GET /x*']}]}",
            (
                "agent.yaml:1:29: path pattern '/x*': 'x*' is not possible ('*' and '**' stand for whole segments; "
                "queries and percent-encoding cannot be matched)"
            ),
        ),
        (
            "network: {rules: [{a.test: []}]}",
            "agent.yaml:1:28: no rules for a.test; write the host alone to allow all of it",
        ),
        (
            "network: {mode: wran}",
            "agent.yaml:1:17: network.mode must be one of enforce, warn; did you mean 'warn'?",
        ),
        ("network: {budget: {}}", "agent.yaml:1:19: network.budget says nothing"),
        ("network: {budget: {hosts: {a.test: {}}}}", "agent.yaml:1:36: the budget of a.test says nothing"),
        ("network: {budget: {request: 5}}", "agent.yaml:1:20: unknown key 'request'; did you mean 'requests'?"),
        (
            "network: {budget: {requests: 0}}",
            "agent.yaml:1:30: network.budget: requests must be between 1 and 1000000000",
        ),
        (
            "network: {budget: {upload: 1.5GB}}",
            "agent.yaml:1:28: network.budget: upload must be an amount of bytes, e.g. 500MB, 2GB or 64KiB",
        ),
        (
            "network: {budget: {hosts: {A.test: {requests: 1}, a.test.: {requests: 2}}}}",
            "agent.yaml:1:51: a.test is listed twice; put its budget in one place",
        ),
        ("network: {allow: [a.test]}", "agent.yaml:1:11: 'allow': write network.rules instead, e.g. rules: [api.example.com]"),
        ("ports: [3000]", "agent.yaml:1:8: ports must be a mapping, not a list"),
        ("ports: {web: 70000}", "agent.yaml:1:14: ports.web must be between 1 and 65535"),
        ("ports: {web: '3000'}", "agent.yaml:1:14: ports.web must be a whole number, not a string"),
        ("ports: {Web: 3000}", "agent.yaml:1:9: 'Web' cannot be part of a host name: lower-case letters, digits and `-`, at most 63"),
        ("ports: {a.b: 3000}", "agent.yaml:1:9: 'a.b' cannot be part of a host name: lower-case letters, digits and `-`, at most 63"),
        ("ports: {web: 443}", "agent.yaml:1:14: port 443 is Moat's own in a sandbox; let the server listen on another"),
        ("endpoints: {port: 1}", "agent.yaml:1:1: 'endpoints': belongs in ~/.moat/config.yaml; endpoints of a run are its `ports`"),
        ("[a, b]", "agent.yaml:1:1: the file must be a mapping, not a list"),
        ("just text", "agent.yaml:1:1: the file must be a mapping, not a string"),
        ("? [a, b]\n: c", "agent.yaml:1:3: a key must be a string"),
        ("<<: {name: a}", "agent.yaml:1:1: merge keys (`<<`) are not supported"),
        ("name: !!python/object:os.system x", "agent.yaml:1:7: name must be a string, not a value tagged tag:yaml.org,2002:python/object:os.system"),
        ("name: !secret x", "agent.yaml:1:7: name must be a string, not a value tagged !secret"),
    ],
)  # fmt: skip
def test_one_mistake(workspace, text, expected):
    assert problems(workspace, text) == (expected,)


def test_a_workspace_cannot_redirect_traffic(workspace):
    (problem,) = problems(workspace, "upstream:\n  connect_to: {'api.anthropic.com:443': '6.6.6.6:443'}")
    assert problem.startswith(
        "agent.yaml:1:1: 'upstream': belongs in ~/.moat/config.yaml; a workspace must not"
    )


def test_a_duplicate_key_is_told_and_the_first_one_checked(workspace):
    assert problems(workspace, "name: a\nname: b\nenv: {X: a, X: b}\n") == (
        "agent.yaml:2:1: duplicate key 'name', first in line 1",
        "agent.yaml:3:13: duplicate key 'X', first in line 3",
    )


def test_both_files_are_an_error(workspace):
    write(workspace, "name: a", "moat.yaml")
    with pytest.raises(ConfigError, match="only one of them can count") as caught:
        load(write(workspace, "name: a"))
    assert caught.value.hint == "remove agent.yaml or moat.yaml"


# --- what is no YAML, or an attack --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [a", "agent.yaml:1:9: malformed YAML: expected ',' or ']', but got '<stream end>'"),
        ("env:\n\tA: b", "agent.yaml:2:1: a tab cannot indent YAML; use spaces"),
        ("name: a: b", "agent.yaml:1:8: a second `: ` in one line; put the value in quotes"),
        ("a: *b", "agent.yaml:1:4: malformed YAML: found undefined alias 'b'"),
        (
            "name: a\n---\nname: b\n",
            "agent.yaml:2:1: only one document is read; remove everything from the second `---` on",
        ),
        ("a: 1\nb: \x01", "agent.yaml:2:4: control characters are not allowed here"),
        (b"name: ok\nenv: {A: \xff}", "agent.yaml:2:10: byte 0xff is not UTF-8"),
        ("name: a".encode("utf-16"), "agent.yaml:1:1: this is UTF-16; save it as UTF-8"),
        ("name: " + "[" * 40 + "]" * 40, "agent.yaml:1:22: nested deeper than 16 levels"),
        ("x: " + "y" * 70_000, "agent.yaml:1:1: larger than 64 KiB"),
    ],
)
def test_not_yaml(workspace, text, expected):
    assert problems(workspace, text) == (expected,)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        "{" * 60_000,
        "- " * 30_000,
        "? " * 30_000,
        "a: &a [" + "*a," * 20_000 + "]",
        "\n".join(
            [f"l{n}: &l{n} [" + ", ".join([f"*l{n - 1}"] * 9 if n else ["x"] * 9) + "]" for n in range(9)]
        ),
        "network: {rules: [{h.test: &r [" + ",".join(["x"] * 8000) + "]}, " + "{h.test: *r}," * 60 + "]}",
        "env: {" + "".join(f"A{n}: ~," for n in range(5000)) + "}",
        "&a a: &a b",
    ],
    ids=["flow", "map", "block", "keys", "cycle", "laughs", "wide", "errors", "anchors"],
)
def test_hostile_files_end_soon_in_a_short_message(workspace, text):
    began = time.process_time()
    found = problems(workspace, text)
    assert time.process_time() - began < 10
    assert 1 <= len(found) <= 50
    assert all(problem.startswith("agent.yaml:") and len(problem) < 400 for problem in found)


def test_a_link_out_of_the_workspace_is_not_read(workspace, tmp_path):
    (tmp_path / "secret").write_text("hunter2: [")
    (workspace / "agent.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError) as caught:
        load(workspace)
    assert caught.value.problems == (
        "agent.yaml:1:1: a link that leads out of the workspace is not followed",
    )


def test_a_dangling_link_and_a_directory_and_a_fifo_are_told(workspace):
    place = workspace / "agent.yaml"
    place.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"agent\.yaml:1:1: No such file or directory"):
        load(workspace)
    place.unlink()
    place.mkdir()
    with pytest.raises(ConfigError, match=r"agent\.yaml:1:1: not a regular file"):
        load(workspace)
    place.rmdir()
    os.mkfifo(place)
    with pytest.raises(ConfigError, match=r"agent\.yaml:1:1: not a regular file"):
        load(workspace)


# --- cost -------------------------------------------------------------------------------------------------


def test_a_workspace_without_a_file_does_not_pay_for_yaml(workspace):
    code = "import sys; from pathlib import Path; from moat.config import load; load(Path(sys.argv[1])); print('ruamel.yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, workspace], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- claude ---------------------------------------------------------------------------------------


def test_plugins_and_marketplaces(workspace):
    (workspace / "agent.yaml").write_text(
        """
claude:
  sync_logs: false
  plugins: {"a@b": true, "c.d@e_f": false}
  marketplaces:
    one: {source: github, repo: owner/repo, ref: feature/x}
    two: {source: git, url: "https://git.example.com:8443/a/b.git"}
    three: {source: git, url: git@github.com:a/b.git, ref: v1.0}
    four: {source: directory, path: ../plugins}
    claude-plugins-official: {source: github, repo: anthropics/claude-plugins-official}
"""
    )
    claude = load(workspace).claude
    assert claude.sync_logs is False
    assert dict(claude.plugins) == {"a@b": True, "c.d@e_f": False}
    assert dict(claude.marketplaces) == {
        "one": Marketplace(source="github", location="owner/repo", ref="feature/x"),
        "two": Marketplace(source="git", location="https://git.example.com:8443/a/b.git"),
        "three": Marketplace(source="git", location="git@github.com:a/b.git", ref="v1.0"),
        "four": Marketplace(source="directory", location="../plugins"),
        "claude-plugins-official": Marketplace(
            source="github", location="anthropics/claude-plugins-official"
        ),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plugins: {x: true}", "1:20: 'x' is not a plugin, e.g. formatter@team-tools"),
        ('plugins: {"../a@b": true}', "1:20: '../a@b' is not a plugin, e.g. formatter@team-tools"),
        ('plugins: {"a@b": on}', "1:27: claude.plugins.a@b must be true or false, not a string"),
        ("marketplaces: {m: {repo: a/b}}", "1:28: claude.marketplaces.m needs `source`: github, git, directory"),
        ("marketplaces: {m: {source: github}}", "1:28: claude.marketplaces.m needs `repo`"),
        ("marketplaces: {m: {source: npm, repo: a/b}}", "1:37: claude.marketplaces.m.source must be one of github, git, directory"),
        ("marketplaces: {m: {source: github, repo: a}}", "1:51: 'a' is not a GitHub repository, e.g. owner/repo"),
        ("marketplaces: {m: {source: directory, path: x, ref: y}}", "1:28: claude.marketplaces.m: a directory has no `ref`"),
        ("marketplaces: {m: {source: git, url: 'https://u:p@h/x'}}", "1:47: https://h/x holds a credential; leave it to git's credential helper"),
        ("marketplaces: {m: {source: github, repo: a/b, ref: --x}}", "1:61: '--x' is not a branch, tag or commit"),
        ("marketplaces: {m: {source: github, repo: a/b, ref: a..b}}", "1:61: 'a..b' is not a branch, tag or commit"),
        ("marketplaces: {agent-skills: {source: github, repo: a/b}}", "1:25: Claude Code keeps the name 'agent-skills' for marketplaces of github.com/anthropics"),
        ("host_hooks: true", "1:10: 'host_hooks': belongs in ~/.moat/config.yaml; a workspace must not ask for the user's hooks"),
    ],
)  # fmt: skip
def test_a_mistake_in_claude(workspace, text, expected):
    assert problems(workspace, f"claude: {{{text}}}") == (f"agent.yaml:{expected}",)


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c id",
        "file:///etc",
        "http://example.com/a.git",
        "git://example.com/a.git",
        "-oProxyCommand=id@h:x",
        "ssh://-oProxyCommand=id/x",
        "ssh://git@-x/y",
        "https://example.com/a?x=1",
        "https://exa mple.com/a",
        "https:///a",
        "/etc",
        "git@ext::x",
    ],
)
def test_a_url_that_git_could_read_otherwise_is_refused(workspace, url):
    (problem,) = problems(workspace, f"claude: {{marketplaces: {{m: {{source: git, url: '{url}'}}}}}}")
    assert problem.startswith("agent.yaml:1:47: ")


def test_host_hooks_are_the_users_choice(home):
    (home / ".moat").mkdir(exist_ok=True)
    path = home / ".moat/config.yaml"
    assert load_user(Home(home / ".moat")).claude.host_hooks is False
    path.write_text("claude: {host_hooks: true}")
    path.chmod(0o600)
    assert load_user(Home(home / ".moat")).claude.host_hooks is True
