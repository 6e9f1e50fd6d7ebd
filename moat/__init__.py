"""Moat runs AI coding agents in a sandbox that holds no secret.

This package imports nothing: `moat.runtime` is the API, `moat.proxy` the proxy on its own.
"""

__version__ = "0.1.0"
