"""The part of a run that keeps its repository's hooks and configuration from it, and tells what it left."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path

import anyio
from anyio import to_thread

from moat.paths import Home, private_dir, write_private
from moat.runtime.git import fence, obeyed, reflogs, submodules
from moat.runtime.git.inner import Inner
from moat.runtime.git.layout import Repository, find
from moat.runtime.git.left import FILE
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import Mount, Sandbox

_LOOK = 1.0  # seconds between two looks at the repository while a run goes on
_SHARE = 20  # a look through the workspace may take one part in so many of the time


class GitGuard(Part):
    name = "git"

    def __init__(self) -> None:
        self._run: RunContext | None = None
        self._repository: Repository | None = None
        self._placeholder: _Placeholder | None = None
        self._before: obeyed.State = {}
        self._inner: Inner | None = None
        self._looked = anyio.Event()
        self._began = False
        self._told: tuple[str, ...] = ()  # while it went on

    async def prepare(self, run: RunContext) -> Addition:
        self._run = run
        repository = self._repository = find(run.request.workspace)
        writable = run.request.writable_git
        mounts: tuple[Mount, ...] = ()
        if repository is not None:
            await to_thread.run_sync(submodules.settle, repository)
            if not writable:
                await to_thread.run_sync(fence.complete, repository)
            if not writable and not repository.linked:
                self._placeholder = _Placeholder(run.home, repository.own)
            mounts = fence.mounts(repository, writable=writable)
            if not writable:
                mounts += fence.shown_again(repository, run.request.mounts)
            if repository.linked:
                where = run.home.run(run.id)
                mounts += await to_thread.run_sync(reflogs.lend, repository.common, where)
        run.start("git", self._look)
        return Addition(mounts=mounts)

    async def _look(self) -> None:
        """Beside what else is being prepared: on a large workspace it takes a while."""
        assert self._run is not None
        if self._repository is not None:
            self._inner = await to_thread.run_sync(Inner, self._repository)
        self._before = await to_thread.run_sync(self._now)
        data = json.dumps(dict(self._before)).encode()
        await to_thread.run_sync(write_private, self._run.home.run(self._run.id) / FILE, data)
        self._looked.set()

    def _now(self) -> obeyed.State:
        assert self._run is not None
        return obeyed.look(self._run.request.workspace, common=self._run.request.writable_git)

    async def made(self, sandbox: Sandbox) -> None:
        del sandbox
        await self._looked.wait()

    async def started(self) -> None:
        assert self._run is not None
        self._began = True
        if self._repository is not None:
            self._run.start("git", self._watch)

    async def _watch(self) -> None:
        """What would harm whoever uses git here now is told now, and not only at the end."""
        assert self._run is not None
        assert self._repository is not None
        config = _Config(self._repository, writable=self._run.request.writable_git)
        assert self._inner is not None
        due = 0.0  # of the next look through the workspace
        while True:
            await anyio.sleep(_LOOK)
            new = (*config.replaced(), *await to_thread.run_sync(self._cut, self._repository))
            if anyio.current_time() >= due and await to_thread.run_sync(self._inner.changed):
                began = anyio.current_time()
                found = obeyed.compare(self._before, await to_thread.run_sync(self._now))
                new += tuple(line for line in found if line not in self._told)
                due = anyio.current_time() + _SHARE * (anyio.current_time() - began)
            if new:
                self._told += new
                self._run.journal.record("git.changed", changes=new)
                for line in new:
                    self._run.tell(f"warning: {line}")

    def _cut(self, repository: Repository | None = None) -> tuple[str, ...]:
        assert self._run is not None
        return obeyed.cut(self._run.request.workspace, self._before, repository)

    async def aclose(self) -> None:
        """The sandbox is gone by now, so nothing changes any more."""
        assert self._run is not None
        if self._repository is not None and self._repository.linked:
            where = self._run.home.run(self._run.id)
            await to_thread.run_sync(reflogs.bring_back, self._repository.common, where)
        if self._began:
            if self._repository is not None:
                await to_thread.run_sync(submodules.settle, self._repository)
            links = await to_thread.run_sync(self._cut)
            found = obeyed.compare(self._before, await to_thread.run_sync(self._now))
            changes = tuple(dict.fromkeys((*self._told, *links, *found)))
            if changes:
                self._run.journal.record("git.changed", changes=changes)
                self._run.update(git_changes=changes)
        if self._placeholder is not None:
            self._placeholder.release()
        with contextlib.suppress(OSError):  # it cannot be written there: who looks next compares once more
            (self._run.home.run(self._run.id) / FILE).unlink(missing_ok=True)


class _Config:
    """The file that a mount keeps from the sandbox, until somebody on the host replaces it (`git config`)."""

    def __init__(self, repository: Repository, *, writable: bool) -> None:
        self._file = repository.own / "config"
        self._guarded = not writable and not repository.linked
        self._was = self._inode()

    def _inode(self) -> int:
        try:
            return os.lstat(self._file).st_ino
        except OSError:
            return 0

    def replaced(self) -> tuple[str, ...]:
        """Once, in words."""
        if not self._guarded or self._inode() == self._was:
            return ()
        self._guarded = False
        return (f"{self._file} was replaced on this machine, so that this run can write it from now on",)


class _Placeholder:
    """Our `commondir` in a repository, for as long as any run of this user needs it."""

    def __init__(self, home: Home, own: Path) -> None:
        self._own = own
        name = hashlib.sha256(os.fsencode(own)).hexdigest()[:32]
        directory = private_dir(home.root / "git")
        self._lock = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        fence.place_commondir(own)

    def release(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another run needs it
        else:
            fence.remove_commondir(self._own)
        os.close(self._lock)
