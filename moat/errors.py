"""What can go wrong, in words a user can act on.

Every error carries the cause (`str(error)`) and, where there is one, the command or edit that fixes
it (`hint`). Only `moat.cli` turns an error into output and an exit status. Voice: lower case, no full
stop, the thing first and the reason after it.
"""

import contextlib
from collections.abc import Iterator, Sequence

EXIT_USAGE = 2
EXIT_START = 3
EXIT_INTERRUPTED = 130


class MoatError(Exception):
    """Base of every error that Moat raises on purpose."""

    exit_code = EXIT_START

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(MoatError):
    """The command line or an API call was wrong; nothing was done."""

    exit_code = EXIT_USAGE


class ArgumentError(UsageError, ValueError):
    """An argument of an API call is not what it can be; the message names it. Nothing was done."""


class NotAllowedError(UsageError):
    """The user was asked, and said no: nothing was started."""


class ConfigError(MoatError):
    """A configuration file is wrong. `problems` are all of them, each as `file:line:col: text`."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: Sequence[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = tuple(problems)


class GrantError(MoatError):
    """A grant is unknown, missing, expired or could not be made."""


class MissingGrantsError(GrantError):
    """Grants that a run needs are not there, or have expired. `fixes` are the commands that make each."""

    def __init__(self, message: str, *, hint: str | None = None, fixes: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint or "\n".join(f"run `{fix}`" for fix in fixes))
        self.fixes = tuple(fixes)


class VaultError(MoatError):
    """The credential store cannot be read or written (no keyring, locked, wrong passphrase…)."""


class StartError(MoatError):
    """The run could not be started (no runtime, image build failed, sandbox refused…)."""


class RunNotFoundError(MoatError):
    """No run, or more than one, answers to the given name or id."""

    exit_code = EXIT_USAGE


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """A task group reports groups; a caller wants the one thing that went wrong."""
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        known = [error for error in leaves if isinstance(error, MoatError)]
        if known or len(leaves) == 1:
            raise (known or leaves)[0] from None
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
