"""The `openai` grant: an OpenAI API key, for the API and for Codex, or the ChatGPT login of Codex.

Codex reads its login from `~/.codex/auth.json`, or from CODEX_API_KEY with `codex exec`. Its settings spare
the user its questions, and it a sandbox of its own, which it cannot make inside of Moat's.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Mapping, Sequence

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, CredentialKind, LoginRule
from moat.vault.providers.declared import Shape, plain
from moat.vault.providers.model import Check, Held
from moat.vault.providers.tool_login import KeyOrLogin

_SETTINGS = """\
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
{}
# All others do not get the variables of the proxy and of its certificates.
[shell_environment_policy]
inherit = "all"

[projects."/workspace"]
trust_level = "trusted"
"""
# Without it, Codex sends the key to chatgpt.com as well, to ask for models.
_OWN_API = 'openai_base_url = "https://api.openai.com/v1"\n'


LOGIN_HOSTS = ("chatgpt.com",)
ACCOUNT, LOGIN, PLAN = "account", "login", "plan"  # in the metadata of a login; none is secret
_FAR_FUTURE = 4102444800  # 2100-01-01; whether the real login has ended is for the host to see


@dataclass(frozen=True, slots=True)
class OpenAI(KeyOrLogin):
    def placeholder(self, info: CredentialInfo, token: str) -> str:
        if info.kind is not CredentialKind.OAUTH:
            return self.shape.placeholder(token)
        return _unsigned(info, f"moat-placeholder-not-a-real-token-{token}", exp=_FAR_FUTURE)

    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        """With an API key, too: Codex may try a ChatGPT login, whose tokens would be real."""
        rule = LoginRule(
            credential=info.name,
            hosts=("auth.openai.com",),
            path="/oauth/token",
            access=placeholder,
            refresh=_refresh(placeholder),
        )
        return (rule,)

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        one = plain(held)
        if one.info.kind is CredentialKind.OAUTH:
            return _files(_login(one), "")
        return _files({"OPENAI_API_KEY": one.placeholder}, _OWN_API)


def _files(login: Mapping[str, object], settings: str) -> tuple[tuple[str, bytes], ...]:
    config = _SETTINGS.format(settings).encode()
    return ((".codex/auth.json", json.dumps(login).encode()), (".codex/config.toml", config))


def _login(held: Held) -> Mapping[str, object]:
    """Codex reads names and plan from the ID token, and renews what it has for more than eight days."""
    tokens = {
        "id_token": _unsigned(held.info, "moat-placeholder", email=held.info.metadata.get(LOGIN, "")),
        "access_token": held.placeholder,
        "refresh_token": _refresh(held.placeholder),
        "account_id": held.info.metadata[ACCOUNT],
    }
    now = dt.datetime.now(dt.UTC).isoformat()
    return {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": now}


def _unsigned(info: CredentialInfo, signature: str, **claims: object) -> str:
    """A JSON web token that says what Codex looks for, with a signature that is none."""
    about = {
        "chatgpt_account_id": info.metadata[ACCOUNT],
        "chatgpt_plan_type": info.metadata.get(PLAN) or "plus",
    }
    parts = ({"alg": "none", "typ": "JWT"}, {"https://api.openai.com/auth": about, **claims})
    return ".".join([*(_base64(json.dumps(part)) for part in parts), signature])


def _base64(text: str) -> str:
    """RFC 7515 §2: without padding."""
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def _refresh(placeholder: str) -> str:
    return f"rt-{placeholder.rpartition('.')[2]}"


PROVIDER = OpenAI(
    name="openai",
    summary="OpenAI API and Codex",
    hosts=("api.openai.com",),
    aliases=("codex",),
    login_hosts=LOGIN_HOSTS,
    opens=("chatgpt.com", "*.openai.com"),
    shape=Shape("sk-proj-", 64),
    marks=("sk-proj-", "sk-svcacct-"),
    sources=("OPENAI_API_KEY", "CODEX_API_KEY"),
    variables=("OPENAI_API_KEY", "CODEX_API_KEY"),
    check=Check("api.openai.com", "/v1/models", rejected=(401,)),
    where="https://platform.openai.com/api-keys",
)
