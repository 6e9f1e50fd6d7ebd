"""The user's standing answers (`ask` of config.yaml), as the file has them at this moment."""

from __future__ import annotations

import logging
import os

from moat import config
from moat.config import AskConfig
from moat.errors import ConfigError
from moat.paths import Home

_log = logging.getLogger(__name__)


class Standing:
    """Reads the file again when it has changed. While it cannot be read, what it said before holds."""

    def __init__(self, home: Home) -> None:
        """Raises ConfigError."""
        self._home = home
        self._mark = self._look()
        self._config = config.load_user(home).ask

    def __call__(self) -> AskConfig:
        mark = self._look()
        if mark != self._mark:
            self._mark = mark
            try:
                self._config = config.load_user(self._home).ask
            except (ConfigError, OSError) as error:
                _log.warning("config.yaml is not used: %s", error)
        return self._config

    def _look(self) -> tuple[int, int, int] | None:
        try:
            info = os.stat(self._home.config_file)
        except OSError:
            return None
        return info.st_ino, info.st_mtime_ns, info.st_size
