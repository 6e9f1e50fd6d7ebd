"""The system call filter that the engine puts on a container, from its first process to a late `exec`.

The engine's own filter is not enough: before version 23 it allows AF_VSOCK (which no namespace separates)
and io_uring, and 32-bit calls pass its rules about sockets. `seccomp.py` adds a filter to the agent's
processes only; this one also holds for whoever enters the container later, as root too.
An allowlist: what a future kernel adds is refused until somebody has looked at it.
"""

from __future__ import annotations

import json
import os
from typing import Any

from moat.runtime.seccomp import MAKING, PROTOCOLS, SET_GROUP_ID, SET_USER_ID

_LOCAL = (1, 16)  # AF_UNIX, AF_NETLINK
_INTERNET = (2, 10)  # AF_INET, AF_INET6
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_PERSONALITIES = (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, with and without old uname; the query
_ENOSYS = 38
_MODES = {1: ("chmod", "fchmod", "creat", "mknod"), 2: ("fchmodat", "fchmodat2", "mknodat")}  # by argument
_OPENS = (("open", 1), ("openat", 2))  # which argument is the flags; the mode follows

_ALLOWED = """
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chown
clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range dup dup2 dup3
epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve
execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchown fchownat fcntl fdatasync
fgetxattr file_getattr file_setattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync
ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_mempolicy get_robust_list
get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid
getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl
ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
lsm_get_self_attr lsm_list_modules lsm_set_self_attr lstat madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir mkdirat mlock mlock2 mlockall mmap mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
munlock munlockall munmap name_to_handle_at nanosleep newfstatat pause pidfd_open pidfd_send_signal pipe
pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64
process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat
rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list
set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority
setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat
shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice stat statfs statmount statx symlink
symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask
uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev
"""


def refused_bits() -> int:
    """Of a mode, that no file of a sandbox may get: on the host it would belong to its workspace's owner.

    That is root where root runs Moat: then its group is worth as much. A user's own directories may pass
    their group on.
    """
    return SET_USER_ID | (SET_GROUP_ID if os.geteuid() == 0 else 0)


def profile(bits: int = 0) -> str:
    """JSON for the engine's `seccomp=` option. Only the native 64-bit calls of each machine exist.

    bits: of a mode, that no file may get.
    """
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [
                {"architecture": name, "subArchitectures": []}
                for name in ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
            ],
            "syscalls": [
                _allow(*_ALLOWED.split()),
                *(_allow("socket", "socketpair", value=family) for family in _LOCAL),
                *(_allow_also("socket", family, protocol) for family in _INTERNET for protocol in PROTOCOLS),
                *(_allow("personality", value=value) for value in _PERSONALITIES),
                _allow("clone", value=_NEW_NAMESPACE, masked=0),
                *(_allow(*names, index=index, value=bits, masked=0) for index, names in _MODES.items()),
                *(_allow(name, index=index, value=MAKING, masked=0) for name, index in _OPENS),
                *(_allow(name, index=index + 1, value=bits, masked=0) for name, index in _OPENS),
                # Their flags are behind a pointer; the C libraries fall back to clone and openat.
                {"names": ["clone3", "openat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            ],
        }
    )


def _allow_also(name: str, first: int, third: int) -> dict[str, Any]:
    """A rule for the call whose first and third arguments are these."""
    rule = _allow(name, value=first)
    rule["args"].append({"index": 2, "value": 0xFFFFFFFF, "valueTwo": third, "op": "SCMP_CMP_MASKED_EQ"})
    return rule


def _allow(
    *names: str, index: int = 0, value: int | None = None, masked: int | None = None
) -> dict[str, Any]:
    """A rule for calls whose argument `index` is `value`, or is `masked` under the mask `value`."""
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if value is not None:
        how = "SCMP_CMP_EQ" if masked is None else "SCMP_CMP_MASKED_EQ"
        rule["args"] = [{"index": index, "value": value, "valueTwo": masked or 0, "op": how}]
    return rule
