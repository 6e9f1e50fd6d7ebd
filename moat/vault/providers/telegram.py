"""The `telegram` grant: the token of a bot, which the Bot API has in its paths (`/bot<token>/getMe`)."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Injection, Shape
from moat.vault.providers.model import Check

PROVIDER = Declared(
    name="telegram",
    summary="Telegram Bot API",
    hosts=("api.telegram.org",),
    injection=Injection(surfaces=("path",)),
    # Libraries want digits, a colon and 35 more characters.
    shape=Shape("1234567890:AA", 46),
    sources=("TELEGRAM_BOT_TOKEN", "TELEGRAM_TOKEN"),
    variables=("TELEGRAM_BOT_TOKEN",),
    # A token that is none makes a path that there is not.
    check=Check("api.telegram.org", "/bot${token}/getMe", login=("result", "username"), rejected=(401, 404)),
    where="https://t.me/BotFather",
)
