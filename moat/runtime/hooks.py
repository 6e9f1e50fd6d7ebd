"""`hooks.pre_run`: a shell script in the workspace before the command, in every sandbox."""

from __future__ import annotations

# $1 is the hook; the rest is the command. The hook gets neither the command's stdin nor its stdout.
_WRAPPER = """\
hook=$1; shift
shell=$(command -v bash) || shell=sh
"$shell" -e -c "$hook" </dev/null >&2
status=$?
if [ "$status" -ne 0 ]; then
    echo "moat: error: hooks.pre_run failed with status $status" >&2
    echo "moat: hint: the command was not started: $*" >&2
    exit "$status"
fi
exec "$@"
"""


def with_pre_run(argv: tuple[str, ...], hook: str | None) -> tuple[str, ...]:
    """`argv` behind its hook. A hook that fails is told with its status, which is then the run's own."""
    return argv if hook is None else ("/bin/sh", "-c", _WRAPPER, "moat-pre-run", hook, *argv)
