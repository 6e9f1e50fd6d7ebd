"""The second places of a run's journal, made from the user's configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moat.config.journal import CopyTo, JournalConfig
from moat.errors import StartError
from moat.journal.copies import Copier, Copies
from moat.journal.sinks import CommandSink, FileSink, Sink, SyslogSink


def copies_of(config: JournalConfig, shown: Iterable[Path]) -> Copies:
    """`shown`: what the sandbox can write. Raises StartError for a file in there."""
    visible = [path.resolve() for path in shown]
    for place in config.copy_to:
        if place.file and any(place.file.resolve().is_relative_to(path) for path in visible):
            raise StartError(
                f"journal.copy_to: the sandbox could change {place.file}",
                hint="choose a file outside of the workspace and its mounts in ~/.moat/config.yaml",
            )
    return Copies([Copier(_sink(place), required=place.required) for place in config.copy_to])


def _sink(place: CopyTo) -> Sink:
    if place.file is not None:
        return FileSink(place.file)
    return SyslogSink(place.syslog) if place.syslog is not None else CommandSink(place.command)
