"""Inputs of the fuzzers: one text file per target, in the notation of the corpus, and the corpus itself."""

from __future__ import annotations

from pathlib import Path

from tests.proxy import cases
from tests.proxy.cases import parse_bytes

CORPUS = Path(__file__).parent / "corpus"
_LINE = 100  # characters of a line of the file
_READS = {
    "heads": ("request", "response"),
    "chunks": ("chunked",),
    "conversation": ("request",),
    "connect": (),
}


def load(target: str) -> list[bytes]:
    """What fuzzing has found: inputs that reach more than the seeds do, and faults of the past."""
    path = CORPUS / f"{target}.txt"
    blocks = path.read_text().split("\n\n")[1:] if path.exists() else []  # the first says what they are
    return [b"".join(parse_bytes(line, "|") for line in block.splitlines()) for block in blocks]


def save(target: str, inputs: list[bytes]) -> None:
    head = f"# Found by `nox -s fuzz`: inputs of the target `{target}` that reach more than the cases do."
    (CORPUS / f"{target}.txt").write_text("\n\n".join([head, *map(notation, filter(None, inputs))]) + "\n")


def notation(data: bytes) -> str:
    """Lines that `load` reads as these bytes, of which there is at least one."""
    lines, line = [], ""
    for byte in data:
        line += _escape(byte)
        if byte == 0x0A or len(line) >= _LINE:
            lines.append(line)
            line = ""
    if line:
        lines.append(line)
    return "\n".join("| " + (line[:-1] + "\\x20" if line.endswith(" ") else line) for line in lines)


def _escape(byte: int) -> str:
    character = chr(byte)
    if character == "\\":
        return "\\\\"
    if 0x20 <= byte < 0x7F:
        return character
    return {"\r": "\\r", "\n": "\\n", "\t": "\\t"}.get(character, f"\\x{byte:02x}")


def seeds(target: str) -> list[bytes]:
    """The cases of `tests/proxy/corpus/` as inputs of a target, with a first byte that says how to split."""
    if target == "connect":
        return _places()
    if target == "hello":
        return _hellos()
    if target in {"h2_client", "h2_server"}:
        from tests.fuzz import h2_seeds  # what it imports, a fuzzer has to import instrumented

        return h2_seeds.of_clients() if target == "h2_client" else h2_seeds.of_servers()
    inputs = []
    for number, case in enumerate(cases.everything()):
        if case.reads in _READS[target] and len(case.wire) < 1000:
            odd = case.reads == "request"
            inputs.append(bytes([(number * 8 | odd) & 0xFF]) + case.wire)
    if target == "conversation":
        inputs += [
            inputs[at] + inputs[at + 1][1:] + inputs[at + 2][1:] for at in range(0, len(inputs) - 3, 3)
        ]
    return inputs


def _places() -> list[bytes]:
    """The host and port of every CONNECT in the corpus, and every Host."""
    found = set()
    for case in cases.everything():
        line = case.data.split(b"\r\n")[0].split(b" ")
        if line[0] == b"CONNECT" and len(line) > 1:
            found.add(line[1])
    return sorted(found | {b"127.1:80", b"0x7f.1:1", b"xn--bcher-kva.example:443", b"[::ffff:127.0.0.1]:443"})


def _hellos() -> list[bytes]:
    """ClientHellos of this machine's OpenSSL, whole and cut."""
    import ssl

    inputs = []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for name in ("api.example", "b.example", None):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = version
            context.set_alpn_protocols(["h2", "http/1.1"])
            out = ssl.MemoryBIO()
            session = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                inputs.append(b"\xff" + out.read())
    return [*inputs, *(data[:60] for data in inputs)]
