"""Mounts, hosts and the user's own config.yaml: what is accepted, and what is refused with which reason."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from moat.config import MountConfig, UpstreamConfig, UserConfig, load, load_user, parse_host, parse_mount
from moat.config.journal import CopyTo
from moat.config.overlooked import overlooked
from moat.errors import ConfigError, UsageError
from moat.paths import Home

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


def write(workspace: Path, text: str) -> Path:
    (workspace / "agent.yaml").write_text(text)
    return workspace


# --- what is not read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], None),
        (["sub/agent.yml"], "agent.yml is not read: rename it to agent.yaml"),
        (["sub/moat.yml"], "moat.yml is not read: rename it to moat.yaml"),
        ([".git/HEAD", "agent.yaml"], "{0}/agent.yaml is not read: it is for runs in {0}"),
        (["agent.yaml"], None),  # of something else, as far as anybody knows
        ([".git/HEAD", "agent.yaml", "sub/.git/HEAD"], None),
    ],
)
def test_what_looks_like_a_configuration(workspace: Path, files: list[str], told: str | None) -> None:
    (workspace / "sub").mkdir()
    for name in files:
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).touch()
    assert overlooked(workspace / "sub") == (told and told.format(workspace))


# --- mounts -----------------------------------------------------------------------------------------


def test_a_mount_is_read_relative_to_the_workspace(workspace, home):
    (workspace / "data").mkdir()
    (home / "shared").mkdir()
    assert parse_mount("data:/data", workspace) == MountConfig(workspace / "data", "/data")
    assert parse_mount("./data/:/data//x/:rw", workspace) == MountConfig(workspace / "data", "/data/x")
    assert parse_mount("~/shared:/s:ro", workspace) == MountConfig(home / "shared", "/s", read_only=True)
    assert parse_mount("..:/up:ro", workspace / "data").source == workspace


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/",
            "/tmp",
            "/proc",
            "/proc/1",
            "/sys/fs",
            "/dev/shm",
            "/etc/ssl",
            "/run/moat",
            "/usr/bin",
            "/lib",
        ),
        *(
            "/workspace",
            "/workspace/",
            "/home/agent",
            "/home",
            "/home/agent/.claude",
            "/home/agent/.claude.json",
        ),
        *("data", "../x", "/data/../etc", "//etc", "/da\x07ta"),
    ],
)
def test_a_target_that_is_not_free_is_refused(workspace, target):
    (workspace / "data").mkdir()
    with pytest.raises(UsageError):
        parse_mount(f"data:{target}", workspace)


@pytest.mark.parametrize(
    "text", ["", "data", "data:", ":/data", "data:/data:rx", "data:/data:ro:x", "missing:/data"]
)
def test_a_mount_that_is_none_is_refused(workspace, text):
    (workspace / "data").mkdir()
    with pytest.raises(UsageError):
        parse_mount(text, workspace)


def test_sources_that_hold_credentials_or_engines_are_refused(workspace, home):
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id").touch()
    (home / ".moat" / "credentials").mkdir(parents=True)
    (workspace / "innocent").symlink_to(home / ".ssh")
    sources = [
        *("~/.ssh", "~/.ssh/id", "~", "innocent", "~/.moat", "~/.moat/credentials", "/"),
        *("/proc", "/sys/kernel", "/dev", "/run", "/var/run"),
    ]
    for source in sources:
        with pytest.raises(UsageError):
            parse_mount(f"{source}:/data", workspace)


@pytest.mark.parametrize(
    "mount",
    [
        "~/.bashrc:/rc",
        "~/bin:/b",
        "~/bin:/b:rw",
        "link:/b",
        "~/.mozilla:/m:ro",
        "~/.bashrc:/rc:ro",
        "cookies:/m:ro",
    ],
)
def test_a_file_of_the_workspace_opens_little_of_what_is_outside(workspace, home, mount):
    """`~/.bashrc` is a program of the user's machine. Seen failing without `refused_to_workspace`."""
    for name in ("bin", ".mozilla"):
        (home / name).mkdir()
    (home / ".bashrc").touch()
    (workspace / "link").symlink_to(home / "bin")
    (workspace / "cookies").symlink_to(home / ".mozilla")
    with pytest.raises(ConfigError) as caught:
        load(write(workspace, f"mounts: ['{mount}']"))
    assert "--mount " in caught.value.problems[0]
    assert parse_mount(mount, workspace), "the user may ask for it"


def test_what_a_file_of_the_workspace_may_still_open(workspace, home):
    (home / "shared").mkdir()
    (workspace / "data").mkdir()
    text = "mounts: ['~/shared:/s:ro', 'data:/data', 'data:/more:rw', '.:/again']"
    assert [mount.read_only for mount in load(write(workspace, text)).mounts] == [True, False, False, False]


def test_two_mounts_with_one_target(workspace):
    (workspace / "a").mkdir()
    with pytest.raises(ConfigError) as caught:
        load(write(workspace, "mounts: ['a:/data', 'a:/data/']"))
    assert caught.value.problems == ("agent.yaml:1:21: two mounts have the target /data",)


# --- hosts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a", "a.test", "*.a.test", "a.test:8443", "127.0.0.1:80", "[::1]:443", "x_y.test"]
)
def test_hosts(text):
    assert parse_host(text.upper()) == text


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.", "a.*.test", "a..test", "-a.test", "a.test:", "a.test:0", "a.test:65536", "a b", "ä.test", "u@a.test", "a/b"],
)  # fmt: skip
def test_no_hosts(text):
    with pytest.raises(UsageError):
        parse_host(text)


def test_what_config_accepts_the_proxy_understands(workspace):
    from moat.rules import parse_host_rule

    rules = ["allow GET /", "deny * /a/*/b/**", "allow M-SEARCH /x.y~z/", "allow POST /a:b@c"]
    text = (
        "network: {rules: [a.test, '*.b.test:8443', {c.test: [" + ", ".join(f"'{r}'" for r in rules) + "]}]}"
    )
    found = load(write(workspace, text)).network.rules
    assert [len(parse_host_rule(entry.host, entry.rules).rules) for entry in found] == [0, 0, len(rules)]


# --- the user's own file --------------------------------------------------------------------------------


def user_file(home: Path, text: str, mode: int = 0o600) -> Home:
    place = Home(home / ".moat")
    place.root.mkdir(mode=0o700, exist_ok=True)
    place.config_file.write_text(text)
    place.config_file.chmod(mode)
    return place


def test_the_users_file_may_be_missing(home):
    assert load_user(Home(home / ".moat")) == UserConfig()


def test_every_key_of_the_users_file(home):
    text = """\
upstream:
  ca_bundle: ca.pem
  proxy: http://user:pass@proxy.test:3128
  connect_to:
    "API.anthropic.com:443": "127.0.0.1:8443"
    "b.test:80": "[::1]:8080"
"""
    place = user_file(home, text)
    (home / ".moat" / "ca.pem").write_text(PEM)
    assert load_user(place) == UserConfig(
        path=place.config_file,
        upstream=UpstreamConfig(
            ca_bundle=home / ".moat" / "ca.pem",
            proxy="http://user:pass@proxy.test:3128",
            connect_to={("api.anthropic.com", 443): ("127.0.0.1", 8443), ("b.test", 80): ("::1", 8080)},
        ),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("upstraem: {}", "1:1: unknown key 'upstraem'; did you mean 'upstream'?"),
        ("proxy: {port: 1}", "1:1: 'proxy': write upstream.proxy"),
        ("upstream: {ca_bundle: missing.pem}", "1:23: missing.pem: No such file or directory"),
        ("upstream: {ca_bundle: config.yaml}", "1:23: config.yaml holds no PEM certificate"),
        (
            "upstream: {proxy: 'socks5://a:1'}",
            "1:19: upstream.proxy must be http://[user:password@]host:port",
        ),
        (
            "upstream: {proxy: 'http://u:hunter2@a'}",
            "1:19: upstream.proxy must be http://[user:password@]host:port",
        ),
        (
            "journal: {copy_to: {file: x}}",
            "1:20: journal.copy_to must be a list, e.g. [{file: ~/moat-journal.jsonl}], not a mapping",
        ),
        (
            "journal: {copy_to: [x]}",
            "1:21: an entry of journal.copy_to is a mapping, e.g. {file: ~/moat-journal.jsonl}",
        ),
        ("journal: {copy_to: [{fil: x}]}", "1:22: unknown key 'fil'; did you mean 'file'?"),
        (
            "journal: {copy_to: [{required: true}]}",
            "1:21: an entry of journal.copy_to needs exactly one of file, syslog, command",
        ),
        (
            "journal: {copy_to: [{file: a, syslog: local}]}",
            "1:21: an entry of journal.copy_to needs exactly one of file, syslog, command",
        ),
        (
            "journal: {copy_to: [{file: a, required: yes}]}",
            "1:41: required must be true or false, not a string",
        ),
        (
            "journal: {copy_to: [{syslog: loghost}]}",
            "1:30: 'loghost' is not `local`, `udp://host:port` or `tcp://host:port`",
        ),
        (
            "journal: {copy_to: [{syslog: 'udp://h:1', required: true}]}",
            "1:21: UDP does not say whether anything arrived: it cannot be required",
        ),
        ("journal: {copy_to: [{command: []}]}", "1:31: command has no word"),
        (
            "journal: {copy_to: [{command: logger}]}",
            "1:31: command must be a list, e.g. [/usr/bin/ssh, loghost, cat >> moat.jsonl], not a string",
        ),
        ("journal: {max_size: 5}", '1:21: journal.max_size must be a string; put it in quotes: "5"'),
        ("journal: {max_size: big}", "1:21: 'big' is not a size, e.g. 512k, 64m or 2g"),
        ("journal: {max_trace: 1k}", "1:22: journal.max_trace must be between 16k and 64g"),
        ("journal: {copy: []}", "1:11: unknown key 'copy'; did you mean 'copy_to'?"),
        ("upstream: {connect_to: {a: 'b:1'}}", "1:25: 'a' is not host:port"),
        ("upstream: {connect_to: {'a:1': b}}", "1:32: 'b' is not host:port"),
        ("upstream: {connect_to: {'a:1': 'b:70000'}}", "1:32: 'b:70000' is not host:port"),
    ],
)
def test_one_mistake_in_the_users_file(home, text, expected):
    place = user_file(home, text)
    with pytest.raises(ConfigError) as caught:
        load_user(place)
    assert caught.value.problems == (f"{place.config_file}:{expected}",)


def test_a_users_file_that_others_can_write_is_refused(tmp_path):
    """But for one that they cannot come to: Debian's users have a umask of 002. Seen failing both ways."""
    with tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:
        Path(open_to_all).chmod(0o755)
        place = user_file(Path(open_to_all), "upstream: {}")
        (tmp_path / "config.yaml").symlink_to(place.config_file)
        for root, file in ((0o710, 0o666), (0o701, 0o620), (0o755, 0o602)):
            place.root.chmod(root)
            place.config_file.chmod(file)
            for way in (place, Home(tmp_path)):  # a link in a private directory leads there all the same
                with pytest.raises(ConfigError, match="others can write the file; run `chmod 600 "):
                    load_user(way)
        place.root.chmod(0o700)
        assert [load_user(way).path for way in (place, Home(tmp_path))]


def test_limits_of_the_journal(home):
    config = load_user(user_file(home, "journal: {max_size: 2m, max_trace: 1g}"))
    assert (config.journal.max_size, config.journal.max_trace) == (2 << 20, 1 << 30)


def test_second_places_of_the_journal(home):
    text = (
        "journal:\n  copy_to:\n  - {file: ~/a.jsonl, required: true}\n  - file: b.jsonl\n"
        "  - syslog: tcp://[::1]:601\n  - command: [logger, -n, 5]\n    required: false\n"
    )
    config = load_user(user_file(home, text))
    assert config.journal.copy_to == (
        CopyTo(file=home / "a.jsonl", required=True),
        CopyTo(file=home / ".moat/b.jsonl"),
        CopyTo(syslog="tcp://[::1]:601"),
        CopyTo(command=("logger", "-n", "5")),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("journal: {copy_to: []}", "a workspace must not say what is recorded"),
        ("secrets: {A: op://x}", "real secrets in the sandbox"),
    ],
)
def test_what_a_workspace_must_not_say(workspace, text, told):
    with pytest.raises(ConfigError, match=told):
        load(write(workspace, text))
