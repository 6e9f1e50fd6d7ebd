"""`python -m moat` is the `moat` command."""

import sys

from moat.cli import main

if __name__ == "__main__":
    sys.exit(main())
