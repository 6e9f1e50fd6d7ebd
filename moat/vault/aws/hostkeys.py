"""The user's own AWS keys, as AWS's tools find them: the shell's variables, `~/.aws`, and the `aws` command.

What is plain is read here. Everything else (SSO, chained roles, the instance's own) is what `aws configure
export-credentials` is for. These keys sign one request to STS and go nowhere.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from moat.errors import GrantError
from moat.regex import regex
from moat.sigv4 import Keys
from moat.vault.key import without_passphrase

_DEADLINE = 60.0  # seconds for `aws`; a single sign-on may have to be renewed
_SAID = 300  # characters of an error
_LONG_WORD = regex(rb"[A-Za-z0-9+/=_-]{8,}")  # as long as a part of a key that tells something


def host_keys(profile: str, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys that AWS's own tools would use. `profile` as `--profile`. May block. Raises GrantError."""
    if not profile and (key_id := environment.get("AWS_ACCESS_KEY_ID")):
        secret = environment.get("AWS_SECRET_ACCESS_KEY", "")
        if not secret:
            raise GrantError(
                "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not", hint="set both, or neither"
            )
        return Keys(key_id, secret, environment.get("AWS_SESSION_TOKEN", ""))
    name = profile or environment.get("AWS_PROFILE") or "default"
    return _in_file(name, environment) or _exported(name, environment)


def _in_file(name: str, environment: Mapping[str, str]) -> Keys | None:
    """Long-lived keys of a profile in one of the two files."""
    places = (
        (environment.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), name),
        (
            environment.get("AWS_CONFIG_FILE", "~/.aws/config"),
            name if name == "default" else f"profile {name}",
        ),
    )
    for place, section in places:
        found = _section(Path(place).expanduser(), section)
        key_id, secret = found.get("aws_access_key_id", ""), found.get("aws_secret_access_key", "")
        if key_id and secret and "role_arn" not in found:
            return Keys(key_id, secret, found.get("aws_session_token", ""))
    return None


def _section(path: Path, name: str) -> Mapping[str, str]:
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise GrantError(f"{path} cannot be read: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError):
        # Not chained: the text of the error quotes the line.
        raise GrantError(f"{path} is not as AWS writes it", hint="`aws configure` makes a new one") from None
    return dict(parser[name]) if parser.has_section(name) else {}


def _exported(name: str, environment: Mapping[str, str]) -> Keys:
    program = shutil.which("aws", path=environment.get("PATH"))
    log_in = f"log in (`aws sso login --profile {name}`), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if program is None:
        raise GrantError(f"no AWS credentials on this machine for the profile {name}", hint=log_in)
    words = [program, "configure", "export-credentials", "--format", "process", "--profile", name]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=without_passphrase(environment),
            cwd="/",
            timeout=_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GrantError(f"`aws` did not answer within {_DEADLINE:.0f} s", hint=log_in) from None
    except OSError as error:
        raise GrantError(f"`aws` cannot be run: {error.strerror}", hint=log_in) from None
    try:
        data = json.loads(done.stdout)
        return Keys(
            str(data["AccessKeyId"]), str(data["SecretAccessKey"]), str(data.get("SessionToken") or "")
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        said = _last_words(done.stdout, done.stderr)
        raise GrantError(f"no AWS credentials for the profile {name}: {said}", hint=log_in) from None


def _last_words(given: bytes, errors: bytes) -> str:
    """The last line of its errors, unless that quotes what it has given: half of a pair of keys, say."""
    lines = [line.strip() for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    quotes = lines and any(word.decode() in lines[-1] for word in _LONG_WORD.findall(given))
    if not lines or quotes:
        return "it printed no credentials"
    return "".join(c for c in lines[-1] if c.isprintable())[:_SAID]
