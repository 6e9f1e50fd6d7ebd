"""Moat runs AI coding agents in a sandbox that holds no secret.

This package imports nothing: `moat.runtime` is the API, `moat.proxy` the proxy on its own.
"""

__version__ = "0.1.0"

# Another project's `moat` distribution writes files of the same names; `moat.cli` looks for this mark.
DISTRIBUTION = "moat-sandbox"
