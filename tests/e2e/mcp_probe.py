"""In a sandbox: sends what it is told to, and prints what came back, as JSON.

`plan.json`: a list of {"url", "body", "headers"}; body None is a GET.
"""

import http.client
import json
import sys
import urllib.error
import urllib.request


def ask(step):
    data = None if step.get("body") is None else step["body"].encode()
    request = urllib.request.Request(step["url"], data=data, headers=step.get("headers", {}))
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return {"status": answer.status, "headers": dict(answer.headers), "body": answer.read().decode()}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "headers": dict(error.headers), "body": error.read().decode()}
    except (OSError, http.client.HTTPException) as error:
        return {"status": 0, "headers": {}, "body": repr(error)}


def main():
    with open("/workspace/plan.json") as file:
        plan = json.load(file)
    json.dump([ask(step) for step in plan], sys.stdout)


main()
