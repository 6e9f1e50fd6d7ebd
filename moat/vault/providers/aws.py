"""The `aws` grant: a role of AWS that runs may act in.

The sandbox holds a pair of placeholder keys, with which any AWS client signs; the proxy signs anew with keys
that the host gets for the role (`moat.vault.aws`) and that end within hours.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from shlex import quote

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, LoginRule, SigningRule
from moat.vault.providers.model import Entry, Held

NAME = "aws"
REGION = "region"  # metadata: where clients in the sandbox go when nothing else is said
OPTIONS = (
    "role",
    REGION,
    "session_duration",
    "external_id",
    "aws_profile",
)  # metadata, and of `moat grant aws`
_HOSTS = ("*.amazonaws.com", "*.amazonaws.com.cn")
_LONG = 40  # characters of a secret key

ENTRY = Entry(NAME, "A role of AWS, for every AWS client", _HOSTS, _HOSTS)


@dataclass(frozen=True, slots=True)
class Aws:
    entry: Entry = ENTRY

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        """Of the secret key. That of the key id is made from it."""
        del info
        return f"moat{token}".ljust(_LONG, "0")[:_LONG]

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[SigningRule, ...]:
        return (SigningRule(info.name, _HOSTS, key_id(placeholder), placeholder),)

    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        del info, placeholder
        return ()

    def environment(self, held: Sequence[Held]) -> Mapping[str, str]:
        region, placeholder = held[0].info.metadata.get(REGION, ""), held[0].placeholder
        return {
            "AWS_ACCESS_KEY_ID": key_id(placeholder),
            "AWS_SECRET_ACCESS_KEY": placeholder,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,  # the older tools know this one
            "AWS_EC2_METADATA_DISABLED": "true",  # nobody answers there, and clients would wait
            "AWS_PAGER": "",
        }

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        del held
        return ()


def key_id(placeholder: str) -> str:
    """20 characters like AWS's, different in every run."""
    return "AKIA" + base64.b32encode(hashlib.sha256(placeholder.encode()).digest()).decode()[:16]


def flags(info: CredentialInfo) -> str:
    """The options of `moat grant aws` that say the same."""
    given = [(name, info.metadata[name]) for name in OPTIONS if name in info.metadata]
    seconds = {"session_duration": "s"}
    return " ".join(
        f"--{name.replace('_', '-')} {quote(value)}{seconds.get(name, '')}" for name, value in given
    )


PROVIDER = Aws()
