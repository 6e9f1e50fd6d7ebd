"""The `openai` grant: an OpenAI API key, for the API and for Codex.

Codex reads its login from `~/.codex/auth.json`, or from CODEX_API_KEY with `codex exec`. Its settings spare
the user its questions, and it a sandbox of its own, which it cannot make inside of Moat's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, LoginRule
from moat.vault.providers.declared import Declared, Shape, plain
from moat.vault.providers.model import Check, Held

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


@dataclass(frozen=True, slots=True)
class OpenAI(Declared):
    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        """Codex may try a ChatGPT login: its tokens would be real."""
        rule = LoginRule(
            credential=info.name,
            hosts=("auth.openai.com",),
            path="/oauth/token",
            access=placeholder,
            refresh=f"rt-{placeholder}",
        )
        return (rule,)

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        login = json.dumps({"OPENAI_API_KEY": plain(held).placeholder})
        return (
            (".codex/auth.json", login.encode()),
            (".codex/config.toml", _SETTINGS.format(_OWN_API).encode()),
        )


PROVIDER = OpenAI(
    name="openai",
    summary="OpenAI API and Codex",
    hosts=("api.openai.com",),
    aliases=("codex",),
    opens=("chatgpt.com", "*.openai.com"),
    shape=Shape("sk-proj-", 64),
    sources=("OPENAI_API_KEY", "CODEX_API_KEY"),
    variables=("OPENAI_API_KEY", "CODEX_API_KEY"),
    check=Check("api.openai.com", "/v1/models", rejected=(401,)),
    where="https://platform.openai.com/api-keys",
)
