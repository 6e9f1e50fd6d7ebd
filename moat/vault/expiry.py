"""Which credentials are about to end, and how to say so."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from moat.grants import CredentialInfo
from moat.vault.providers import again

SESSION = dt.timedelta(hours=4)  # as long as a session easily gets
SOON = dt.timedelta(minutes=15)  # time enough to grant again without a break
LAST = dt.timedelta(minutes=3)


def ending(
    infos: Iterable[CredentialInfo], now: dt.datetime, within: dt.timedelta
) -> tuple[CredentialInfo, ...]:
    """Those that have not ended yet and will within that time."""
    return tuple(
        info for info in infos if info.expires_at is not None and now < info.expires_at <= now + within
    )


def told(info: CredentialInfo, now: dt.datetime) -> str:
    """That a credential ends, and the command that helps, in one line."""
    assert info.expires_at is not None
    return f"the credential {info.name} ends in {span(info.expires_at - now)}: `{again(info)}`"


def span(time: dt.timedelta) -> str:
    """`3 days`, `5 h`, `12 min`."""
    if time.days > 1:
        return f"{time.days} days"
    minutes = max(1, round(time.total_seconds() / 60))
    return f"{round(minutes / 60)} h" if minutes >= 100 else f"{minutes} min"
