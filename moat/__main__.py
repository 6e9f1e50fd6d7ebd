"""`python -m moat` is the `moat` command."""

import os
import sys


def _leave_the_current_directory() -> str:
    """No module is looked for in the current directory from here on; where it is, if one was until now.

    Python puts it in front of everything else, and it may be a workspace. A Moat that is itself found
    there stays.
    """
    first = sys.path[0]
    if sys.flags.safe_path or __file__.startswith(f"{first.rstrip('/')}/") or not os.path.isabs(first):
        return ""
    sys.path[0] = os.path.dirname(sys.executable)  # as for the program `moat`
    return first


if __name__ == "__main__":
    left = _leave_the_current_directory()

    from moat.cli import main

    if left:
        from moat.cli.own_place import warn_of_modules_in

        warn_of_modules_in(left)
    sys.exit(main())
