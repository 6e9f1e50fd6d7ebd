"""The user's side of a run: their terminal or pipes joined to a supervisor's control socket."""

from __future__ import annotations

from moat.runtime.launch import RunHandle


def attach(handle: RunHandle, *, lead: bool = False) -> int:
    """Join this process's stdin, stdout and stderr to the run until it ends or the user detaches.

    `lead`: this command started the run, so its pipes and signals are the run's own: nothing of the
    output is lost, a slow reader slows the command, Ctrl-C goes to it. Returns the command's exit
    status, or 0 after a detach.
    """
    raise NotImplementedError
