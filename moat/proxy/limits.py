"""Every bound and timeout of the proxy, each with its reason. Nothing else may enter this file.

Sizes are bytes, times are seconds. A test may tighten one with `dataclasses.replace`.
"""

from __future__ import annotations

from moat.dataclass import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one proxy. Frozen: a run cannot loosen them while it runs."""

    # Heads. A head is held in memory until it is complete, so it is the first thing to bound.

    head: int = 64 * KIB
    """Start line and header fields. Node stops at 16 KiB, h11 at 100 KiB, Go at 1 MiB; 64 KiB carries the
    largest cookies and signed headers seen in the field and is still one socket read."""
    target: int = 16 * KIB
    """Request target. RFC 9112 §3 asks for at least 8000; presigned URLs come near that."""
    method: int = 32
    """Longest registered method is 17 characters (UPDATEREDIRECTREF)."""
    fields: int = 256
    """Header fields in a head, and trailer fields in a chunked body. Apache stops at 100, Node at 2000;
    browsers and SDKs send under 40. Bounds the work per head, which size alone does not."""

    # Chunked bodies. Chunk data is streamed and needs no bound; only what is not data does.

    chunk_digits: int = 16
    """Hex digits of a chunk size: what fits 64 bits. More is an attempt to overflow the next parser."""
    chunk_extension: int = 256
    """Bytes after the size on a chunk line. Nobody sends them but attackers (CVE-2023-39326)."""
    chunk_extensions: int = 16 * KIB
    """The same, summed over a body: one byte of data must not cost hundreds of overhead without end."""
    trailers: int = 8 * KIB
    """Trailer section of a chunked body: checksums and a gRPC status, never more than a few fields."""

    linger: int = 4 * 1024 * KIB
    """Bytes that a client may still send after an answer that ends its connection; they are dropped."""

    # Responses that are opened to be scrubbed.

    decoded_step: int = 64 * KIB
    """Most that one decompression step may yield: a bomb grows in pieces that back-pressure can stop."""

    # Requests with credentials in their bodies.

    substituted: int = 256 * KIB
    """A body of known length is held up to this, to say its new length; what is longer leaves in chunks."""
    inflated: int = 64 * 1024 * KIB
    """Most that a compressed request body may come to when it is opened to put a credential in."""

    # Compressed requests that are searched for placeholders.

    inflation: int = 100
    """Most that such a body may come to, in times its size and `decoded_step`. Text comes to 20 at most,
    zeros to 1000; who sends those for our sake keeps the proxy busy."""

    # Messages for MCP servers whose tools are under a policy; of others no more than that is held in memory.

    mcp_message: int = 4 * 1024 * KIB
    """One JSON-RPC body, list of tools or event. The reference server's own bound for a request."""

    # Sharing. One sandbox may be hostile; it may exhaust its own proxy, not the host.

    held: int = 128 * 1024 * KIB
    """Bytes of bodies that are read before they go on (for a signature of AWS, an MCP server, a login), over
    all requests: twenty calls of a Lambda function with the largest body. Each byte costs two or three."""
    connections: int = 512
    """Connections of the sandbox at one time. npm and pip open under 64; each idle one costs ~35 KiB."""
    questions: int = 64
    """Requests that wait for a decider at one time. Each holds one of the connections; the rest go on."""
    upstream_idle: int = 64
    """Idle pooled connections of a run, over all hosts: file descriptors are finite."""

    dial_addresses: int = 8
    """Addresses of one name that are tried. A hostile name server could send thousands, and each attempt
    holds a file descriptor until it ends."""

    # HTTP/2. Windows are the memory that a peer can fill; they open again as the other side takes.

    h2_streams: int = 100
    """Streams of a connection at one time: what RFC 9113 §6.5.2 calls the least, and nginx and Go take."""
    h2_streams_of_run: int = 2048
    """The same over all connections: each holds at most 0.7 MiB, and with idle peers some 30 KiB."""
    h2_stream_window: int = 256 * KIB
    """Unread data of one stream, either side: a bulk body's next read is there when this one has gone."""
    h2_window: int = 1024 * KIB
    """Unread data of a client's connection. Four streams that nobody reads hold up the others, as in Go. A
    connection to a server, which clients share, has no bound but those of its streams."""
    h2_allowance: int = 1000
    """Frames that cost and bring nothing (PING, SETTINGS, empty DATA, tiny WINDOW_UPDATE unless we have sent
    data; a client's reset counts four) that may come at once: a browser sends a dozen in its life."""
    h2_allowance_per_second: int = 200
    """How fast that is refilled: 50 cancelled streams a second are a busy client, thousands an attack."""

    # Time.

    request_head_timeout: float = 60.0
    """From the first byte of a request head to its last. A slow head holds a connection slot (slowloris)."""
    response_head_timeout: float = 300.0
    """From the request's last byte to the response head. Extended thinking stays silent for minutes: 30 s
    broke it upstream."""
    tls_handshake_timeout: float = 10.0
    """Either side. Two round trips; a peer that takes longer is not coming."""
    dial_timeout: float = 30.0
    """Resolve and connect, over all addresses of a host: what browsers and Go's dialer use."""
    dial_stagger: float = 0.25
    """How long an address may stay silent before the next one is tried as well: RFC 8305 §5."""
    question_timeout: float = 30.0
    """A decider's time for one request: what a program needs, and what a client without a deadline bears."""
    client_idle_timeout: float = 120.0
    """A kept-alive client connection between requests; longer than the upstream's, so that the client's
    next request finds its connection open."""
    upstream_idle_timeout: float = 55.0
    """A pooled upstream connection. Common load balancers close at 60 s; reusing one that is just being
    closed loses the request."""
    body_idle_timeout: float = 600.0
    """Silence in the middle of a body, either way. SSE servers ping within a minute; TCP can be dead."""
    tunnel_idle_timeout: float = 3600.0
    """Silence on an upgraded connection (WebSocket): applications ping themselves, dead peers do not."""
    close_timeout: float = 2.0
    """How long a client may go on sending after an answer that ends its connection. Closing at once would
    reset the connection, perhaps before the client has read why."""
