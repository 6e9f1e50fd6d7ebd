"""What mitmproxy does in `table.py`: the same header injected, bodies streamed, a line for each exchange.

Run by mitmdump, not by us. The name of the origin stands for loopback, as in `connect_to` of `proxy.py`.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

RECORD = open(os.environ["MITM_RECORD"], "a", buffering=1)  # noqa: SIM115 - for the life of the process


class Inject:
    def server_connect(self, data: Any) -> None:
        data.server.address = ("127.0.0.1", data.server.address[1])

    def requestheaders(self, flow: Any) -> None:
        flow.request.headers["authorization"] = "Bearer real-secret-token"

    def responseheaders(self, flow: Any) -> None:
        flow.response.stream = True

    def response(self, flow: Any) -> None:
        record = {
            "ts": time.time(),
            "method": flow.request.method,
            "url": flow.request.pretty_url,
            "status": flow.response.status_code,
            "request_headers": [
                list(pair) for pair in flow.request.headers.items() if pair[0] != "authorization"
            ],
            "response_headers": [list(pair) for pair in flow.response.headers.items()],
        }
        RECORD.write(json.dumps(record) + "\n")


addons = [Inject()]
