"""Answers of the proxy's own in the form that AWS clients show to people. Pure.

A client looks for code and message where its protocol has them, and shows the status alone of anything else.
"""

from __future__ import annotations

import json
from dataclasses import replace

from moat.proxy.answers import Answer

# Services that speak XML, as a label of the host; the others speak JSON.
_XML = frozenset({
    "s3", "s3-control", "sts", "iam", "ec2", "sns", "sqs", "rds", "cloudfront", "route53", "cloudformation",
    "autoscaling", "elasticloadbalancing", "elasticache", "redshift", "email", "monitoring", "sdb",
})  # fmt: skip
_CODE = "MoatRefused"


def shaped(answer: Answer, host: str) -> Answer:
    """`answer` to a request to `host`, with the same words. One in another protocol (MCP) stays as it is."""
    told = json.loads(answer.body)
    if not isinstance(told, dict) or "hint" not in told:
        return answer
    text = ". ".join(filter(None, (told["error"], told["hint"])))
    if _XML.isdisjoint(host.split(".")):
        kind, body = b"application/json", json.dumps(told | {"__type": _CODE, "message": text}).encode()
    else:
        from xml.sax.saxutils import escape  # brings urllib and email, which no run needs at its start

        error = f"<Error><Code>{_CODE}</Code><Message>{escape(text)}</Message></Error>"
        kind, body = b"text/xml", f"<ErrorResponse>{error}</ErrorResponse>\n".encode()
    new = {b"Content-Type": kind, b"Content-Length": b"%d" % len(body)}
    headers = tuple((name, new.get(name, value)) for name, value in answer.headers)
    return replace(answer, headers=headers, body=body)
