"""Which role of AWS a grant is for. It is all that is stored of one; there is no secret in it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping

from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.grants import CredentialInfo, CredentialKind
from moat.vault.providers.aws import ENTRY, REGION

LIFE = 900  # seconds that the keys of a role are good for, unless the user says otherwise: AWS's least
_LIVES = (LIFE, 12 * 3600)
_ARN = re.compile(
    r"arn:(?P<partition>aws|aws-cn|aws-us-gov):iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}", re.ASCII
)
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}")
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{2,1224}", re.ASCII)
_PROFILE = re.compile(r"[^\x00-\x1f\x7f\]]{1,128}")
_TIME = re.compile(r"(?:([0-9]{1,2})h)?(?:([0-9]{1,3})m)?(?:([0-9]{1,5})s)?")


@dataclass(frozen=True, slots=True)
class Role:
    arn: str
    region: str = "us-east-1"
    life: int = LIFE  # seconds
    external_id: str = ""
    profile: str = ""  # of the user's ~/.aws; empty: what the shell says

    def __post_init__(self) -> None:
        """Raises UsageError."""
        if not _ARN.fullmatch(self.arn):
            raise UsageError(
                f"--role {self.arn[:200]!r} is no ARN of a role", hint="arn:aws:iam::123456789012:role/agents"
            )
        if not _REGION.fullmatch(self.region):
            raise UsageError(f"--region {self.region[:100]!r} is no region", hint="e.g. --region eu-west-1")
        if self.external_id and not _EXTERNAL_ID.fullmatch(self.external_id):
            raise UsageError(
                "--external-id has characters that AWS does not allow", hint="letters, digits, +=,.@:/-"
            )
        if self.profile and not _PROFILE.fullmatch(self.profile):
            raise UsageError("--aws-profile is not a profile name", hint="see `aws configure list-profiles`")

    @classmethod
    def of(cls, info: CredentialInfo) -> Role:
        """Raises UsageError when the index was edited to something that is no role."""
        known = info.metadata
        return cls(
            known.get("role", ""),
            known.get(REGION, ""),
            int(known.get("session_duration", LIFE)),
            known.get("external_id", ""),
            known.get("aws_profile", ""),
        )

    def info(self, now: dt.datetime) -> CredentialInfo:
        facts: Mapping[str, str] = {
            "role": self.arn,
            REGION: self.region,
            "session_duration": str(self.life),
            "external_id": self.external_id,
            "aws_profile": self.profile,
        }
        return CredentialInfo(
            ENTRY.name,
            CredentialKind.ROLE,
            ENTRY.hosts,
            now,
            metadata={key: value for key, value in facts.items() if value},
        )

    @property
    def sts(self) -> str:
        """The host that gives out its keys."""
        suffix = ".cn" if self.region.startswith("cn-") else ""
        return f"sts.{self.region}.amazonaws.com{suffix}"


def parse_duration(text: str) -> int:
    """Seconds of `15m`, `1h30m`, `3600s`. Raises UsageError."""
    match = _TIME.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    life = hours * 3600 + minutes * 60 + seconds
    if not _LIVES[0] <= life <= _LIVES[1]:
        raise UsageError(
            f"--session-duration {text[:40]}: not from 15m to 12h", hint="e.g. --session-duration 1h"
        )
    return life
