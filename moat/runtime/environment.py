"""What a sandbox's environment must have for programs to work at all; what the run gives comes first."""

from __future__ import annotations

from collections.abc import Mapping

from moat.runtime.sandbox import HOME, TERM

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER = "agent"


def complete(given: Mapping[str, str], *, terminal: bool) -> dict[str, str]:
    """`given` with what is missing. HOME is where the home files are, whatever the host's HOME is.

    A local binary directory in HOME comes first on the default PATH: agents install themselves there.
    """
    environment = {
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "PATH": f"{HOME}/.local/bin:{PATH}",
        "LANG": "C.UTF-8",
        "SHELL": "/bin/bash",
    }
    if terminal:
        environment["TERM"] = TERM
    return {**environment, **given}
