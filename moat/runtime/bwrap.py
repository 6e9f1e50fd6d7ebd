"""Bubblewrap's command line: the tree that a sandbox sees, and what bubblewrap's complaints mean.

Everything goes through `--args FD` and every file through a memfd, so that neither `ps` on the host nor
/proc/1/cmdline inside shows a host path, a variable or a file's content.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.runtime import seccomp, syscalls
from moat.runtime.sandbox import CA_BUNDLE, HOME, HOST_ADDRESS, HOST_NAME, WORKSPACE, HomeFile

INSTALL_HINT = "apt-get install bubblewrap"
_UPGRADE_HINT = "install the security updates of your distribution, or bubblewrap 0.10 or newer"
_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # symlinks into /usr, or old directories
_ETC = (  # of the host; nothing that names the host, its users or its network
    "/etc/alternatives",
    "/etc/chromium.d",
    "/etc/fonts",
    "/etc/inputrc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
)
_ETC_GLOBS = ("java-*", "perl")
_MASKED = ("/proc/keys", "/proc/key-users")  # what the user's key rings hold, by name
_STATE = (
    "/usr/local/var"  # of programs that are installed there: sockets of servers of this machine (watchman)
)
_BUNDLE_ALIASES = ("/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt")
_RESERVED = ("/proc", "/dev", "/sys", "/usr", "/run/moat", *(f"/{name}" for name in _TOP))
_RUN_SIZE = 64 << 20


@dataclass(frozen=True, slots=True)
class Tool:
    """An installed bubblewrap, and what it can do: distributions mend old versions with new options."""

    path: str
    options: frozenset[str]

    def has(self, option: str) -> bool:
        return option in self.options


@dataclass(frozen=True, slots=True)
class Bind:
    source: str  # for messages
    target: str
    read_only: bool
    fd: int  # of the source (`sources.hold`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What the sandbox is made of."""

    uid: int
    gid: int
    binds: tuple[Bind, ...]  # the workspace among them
    staged: str | None  # run by root: the launcher puts them at `staged`/<index>, where only root may write
    home_files: tuple[HomeFile, ...]
    ca_bundle: bytes
    env: Mapping[str, str]
    memory: int  # bytes; bounds the temporary file systems


@dataclass(slots=True)
class Arguments:
    """Bubblewrap's arguments as they are collected, and the descriptors that they name."""

    words: list[str] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)

    def add(self, *words: str | int) -> None:
        """Raises StartError for a NUL, behind which bubblewrap would read options of somebody else's."""
        said = [str(word) for word in words]
        if any("\0" in word for word in said):
            raise StartError(f"a word for {said[0]} holds NUL")
        self.words += said

    def data(self, content: bytes) -> int:
        fd = os.memfd_create("moat")
        self.fds.append(fd)
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self.add("--perms", f"{mode:04o}", "--file", self.data(content), path)

    def directory(self, path: str, mode: int = 0o755) -> None:
        self.add("--perms", f"{mode:04o}", "--dir", path)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def program(name: str, places: str | None = None) -> str | None:
    """Where it is installed: in `places`, or in PATH. `shutil` is 5 ms of imports, for its compressors."""
    for place in (places or os.environ.get("PATH", os.defpath)).split(os.pathsep):
        path = os.path.join(place, name)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def find() -> Tool:
    """The installed bubblewrap. Raises StartError when there is none that can be used."""
    path = program("bwrap")
    if path is None:
        raise StartError("bubblewrap is not installed", hint=INSTALL_HINT)
    if (
        os.stat(path).st_mode & stat.S_ISUID
    ):  # its namespaces are then root's: no listener can be made in them
        raise StartError(f"{path} is set-uid root, which Moat cannot use", hint=f"chmod u-s {path}")
    tool = Tool(path, frozenset(re.findall(r"--[a-z-]+", _said(path, "--help"))))
    needed = "--perms" if os.geteuid() == 0 else "--bind-fd"
    if not tool.has(needed):
        raise StartError(f"bubblewrap is too old: {version(tool)} has no {needed}", hint=_UPGRADE_HINT)
    return tool


def version(tool: Tool) -> str:
    """For people."""
    return _said(tool.path, "--version").strip()


def _said(path: str, option: str) -> str:
    done = subprocess.run([path, option], capture_output=True, text=True, timeout=10, check=False, cwd="/")
    return done.stdout


def arguments(tool: Tool, tree: Tree) -> Arguments:
    """Everything but the descriptors that belong to the launch (`--info-fd`, `--block-fd`).

    Those of the binds are the result's from here on, whatever happens.
    """
    result = Arguments(fds=[bind.fd for bind in tree.binds])
    try:
        _namespaces(result, tool)
        _system(result)
        _etc(result, tree)
        _temporary(result, tool, tree.memory)
        _home(result, tree)
        _binds(result, tree)
        result.add("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORKSPACE)
        result.add("--seccomp", result.data(seccomp.program(bits=syscalls.refused_bits())))
        result.add("--clearenv")
        for name, value in tree.env.items():
            result.add("--setenv", name, value)
    except seccomp.UnsupportedMachineError as error:
        result.close()
        raise StartError(str(error), hint="use --runtime docker") from error
    except BaseException:
        result.close()
        raise
    return result


def _binds(result: Arguments, tree: Tree) -> None:
    """Outer ones first. By descriptor, which bubblewrap compares with what it has mounted."""
    for index, bind in sorted(enumerate(tree.binds), key=lambda item: item[1].target.count("/")):
        option = "--ro-bind" if bind.read_only else "--bind"
        if tree.staged is None:
            result.add(f"{option}-fd", bind.fd, bind.target)
        else:
            result.add(option, f"{tree.staged}/{index}", bind.target)


def _namespaces(result: Arguments, tool: Tool) -> None:
    result.add("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts")
    # The attendant (`namespace`) ends a sandbox as well, but only with the supervisor, and not when it was
    # killed itself: bubblewrap that is killed would leave its sandbox behind.
    result.add("--unshare-cgroup-try", "--die-with-parent", "--cap-drop", "ALL", "--hostname", "moat")
    if tool.has("--disable-userns"):
        result.add("--disable-userns")


def _system(result: Arguments) -> None:
    for directory in ("/etc", "/etc/ssl", "/etc/ssl/certs", "/home", "/var"):
        result.directory(directory)  # made on the way to a file they would be 0700
    result.add("--ro-bind", "/usr", "/usr")
    for name in _TOP:
        path = f"/{name}"
        if os.path.islink(path):
            result.add("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            result.add("--ro-bind", path, path)
    if os.path.isdir(_STATE) and os.path.realpath(_STATE) == _STATE:  # behind a link it is not shown anyway
        result.add("--tmpfs", _STATE)
    # A sandbox of the real uid 0 could write /proc/sys whatever its capabilities: refuse it twice.
    result.add("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev")
    for path in _MASKED:
        if os.path.exists(path):
            result.add("--ro-bind", os.devnull, path)


def _etc(result: Arguments, tree: Tree) -> None:
    paths = [*_ETC, *(str(path) for glob in _ETC_GLOBS for path in sorted(Path("/etc").glob(glob)))]
    for path in paths:  # resolved here: bubblewrap would look for a link's target in the new root
        result.add("--ro-bind-try", os.path.realpath(path), path)
    accounts = f"root:x:0:0:root:/root:/bin/sh\nagent:x:{tree.uid}:{tree.gid}:agent:{HOME}:/bin/bash\n"
    result.file("/etc/passwd", accounts.encode())
    result.file("/etc/group", f"root:x:0:\nagent:x:{tree.gid}:\n".encode())
    result.file(
        "/etc/hosts", f"127.0.0.1 localhost moat\n::1 localhost\n{HOST_ADDRESS} {HOST_NAME}\n".encode()
    )
    result.file("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\n")
    result.file("/etc/resolv.conf", b"nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")
    # The fence is the sandbox; git must not refuse a workspace whose files have several owners.
    result.file("/etc/gitconfig", b"[safe]\n\tdirectory = *\n")
    result.add("--symlink", "../usr/lib/os-release", "/etc/os-release")
    result.file(CA_BUNDLE, tree.ca_bundle)
    for alias in _BUNDLE_ALIASES:
        result.add("--symlink", CA_BUNDLE, alias)


def _temporary(result: Arguments, tool: Tool, memory: int) -> None:
    places = (
        ("/tmp", 0o1777, memory // 2),  # noqa: S108 - inside the sandbox
        ("/var/tmp", 0o1777, memory // 8),  # noqa: S108 - inside the sandbox
        ("/run", 0o755, _RUN_SIZE),
        ("/dev/shm", 0o1777, memory // 8),  # noqa: S108 - inside the sandbox
        (HOME, 0o700, memory // 2),
    )
    for path, mode, size in places:
        result.add("--perms", f"{mode:04o}")
        if tool.has("--size"):
            result.add("--size", size)
        result.add("--tmpfs", path)
    result.add("--symlink", "../run", "/var/run")


def _home(result: Arguments, tree: Tree) -> None:
    """Home files with their directories, and directories above mounts that lie in HOME; all the agent's."""
    made: set[str] = set()
    for bind in tree.binds:
        _home_directories(result, bind.target, made)
    for file in tree.home_files:
        path = home_path(file)
        _home_directories(result, path, made)
        result.file(path, file.data, file.mode)


def _home_directories(result: Arguments, path: str, made: set[str]) -> None:
    for directory in _parents_below(HOME, path):
        if directory not in made:
            made.add(directory)
            result.directory(directory, 0o700)


def _parents_below(base: str, path: str) -> list[str]:
    if not path.startswith(f"{base}/"):
        return []
    parts = path[len(base) + 1 :].split("/")[:-1]
    return ["/".join((base, *parts[: index + 1])) for index in range(len(parts))]


def home_path(file: HomeFile) -> str:
    """Where a home file is, absolute. Raises StartError when it would leave HOME."""
    path = posixpath.normpath(posixpath.join(HOME, file.path))
    if not path.startswith(f"{HOME}/"):
        raise StartError(f"home file {file.path!r} lies outside HOME")
    return path


def check_targets(targets: Iterable[str], home_files: Iterable[HomeFile]) -> None:
    """Raises StartError for a mount over the sandbox's own parts, or over a file that Moat places.

    A home file below a writable mount would be written into the user's own directory.
    """
    mounted = tuple(targets)
    for target in mounted:
        if not target.startswith("/") or posixpath.normpath(target) != target or target == "/":
            raise StartError(f"mount target {target!r} is not a plain absolute path")
        if any(_within(target, reserved) for reserved in _RESERVED) or target in {"/etc", HOME, WORKSPACE}:
            raise StartError(
                f"mount target {target} belongs to the sandbox itself", hint="use another target"
            )
    for file in home_files:
        path = home_path(file)
        for target in mounted:
            if _within(path, target):
                raise StartError(
                    f"mount target {target} hides {path}, which Moat writes",
                    hint=f"remove the mount of {target} from agent.yaml",
                )


def _within(path: str, base: str) -> bool:
    return path == base or path.startswith(f"{base}/")


def diagnose(complaint: str) -> StartError:
    """What a failed start means here, from bubblewrap's own words and the kernel's settings."""
    line = next((line for line in reversed(complaint.splitlines()) if "bwrap: " in line), complaint)
    text = line.strip() or "it ended without a word"
    hint = _kernel_hint(text)
    return StartError(f"bubblewrap could not make a sandbox: {text}", hint=hint)


def _kernel_hint(text: str) -> str:
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "sysctl -w kernel.unprivileged_userns_clone=1"
    if _setting("user/max_user_namespaces") == "0":
        return "sysctl -w user.max_user_namespaces=15000"
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "load AppArmor's profile for bubblewrap: apt-get install apparmor-profiles && ln -s "
            "/usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/ && "
            "apparmor_parser -r /etc/apparmor.d/bwrap-userns-restrict"
        )
    if "mount proc" in text:
        return (
            "this container masks /proc: start it with --security-opt systempaths=unconfined, or use docker"
        )
    if "namespace" in text or "not permitted" in text:
        return "user namespaces are refused here (a container?): allow them, or use --runtime docker"
    return "run `moat doctor`"


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text(encoding="ascii").strip()
    except OSError:
        return ""
