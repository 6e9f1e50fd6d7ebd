"""The browser that BROWSER names, or that the desktop has, as Python finds it."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: `webbrowser` starts programs where this one stands, most often in a workspace.
_PROGRAM = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.argv[1]))"


def show(address: str) -> bool:
    """False when there is none to be had here."""
    return (
        subprocess.run([sys.executable, "-I", "-c", _PROGRAM, address], check=False, cwd="/").returncode == 0
    )
