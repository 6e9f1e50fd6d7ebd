"""The first command of a container: makes the only network that there is, then becomes the agent's command.

    python3 -I sandbox_init.py [--size COLUMNSxROWS] [--host-port PORT]... [--capture PORT]... [--ingress]
        [--mounted DEVICE:INODE:TARGET]... [--env NAME=VALUE]... -- command...
    python3 -I sandbox_init.py --signal NUMBER
    python3 -I sandbox_init.py --exec [--size COLUMNSxROWS] [--env NAME=VALUE]... -- command...

Standard library only, Python 3.7 and later, with no import of Moat: it runs in the container next to
`sandbox_forward.py`, `dnsstub.py` and `seccomp.py`, as the agent and with no capability. Listeners are bound
first, a forwarder is forked off to serve them, and this process itself executes the command: it stays the
foreground process of its terminal, and the engine's init reports its exit status as its own.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys

TYPE_CHECKING = False  # `typing` would take a third of the time until the command runs
if TYPE_CHECKING:
    from moat.runtime import seccomp
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python3 -I` leaves it out
    import seccomp

PROXY = ("127.0.0.1", 3128)
DNS = ("127.0.0.1", 53)
CAPTURED = (("0.0.0.0", 80), ("0.0.0.0", 443))  # noqa: S104 - every address of a namespace with only `lo`
HOST_ADDRESS = "127.63.0.1"
HOME = "/home/agent"
DIAL = "/run/moat/egress/dial.sock"  # where the run says which of our ports it wants
HEAD_START = 0.15  # seconds
WAIT_TURN, WAIT_TURNS = 0.01, 500  # seconds
EXIT_BROKEN, EXIT_DENIED, EXIT_MISSING = 125, 126, 127  # as `docker run` and the shell have them


class Listener:
    def __init__(self, kind: str, sock: socket.socket) -> None:
        self.kind = kind  # proxy, captured, host, dns; dial: not a listener but the connection to DIAL
        self.sock = sock


class Options:
    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None  # of the window
        self.ports: list[int] = []  # the host's
        self.captured: list[int] = []  # further ports to capture
        self.mounted: list[str] = []  # what is to be found where
        self.env: list[str] = []  # of the command alone
        self.ingress = False  # whether there are endpoints
        self.command: list[str] = []


class Process:
    def __init__(self, pid: int, parent: int, foreground: int, started: int) -> None:
        self.pid = pid
        self.parent = parent
        self.foreground = foreground  # process group in the foreground of its terminal; -1 without one
        self.started = started


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C before the command runs: end, without a traceback
    if arguments[:1] == ["--signal"]:
        return send_signal(int(arguments[1]))
    if arguments[:1] == ["--exec"]:
        return join(arguments[1:])
    options = parse(arguments)
    try:
        compare(options.mounted)
        make_home()
        if options.size:
            set_size(options.size)
        listeners = bind(options.ports, options.captured)
        listeners += [Listener("dial", connect(DIAL))] if options.ingress else []
        seccomp.install()  # inherited by the forwarder and by the command
        start_forwarder(listeners)
    except (OSError, seccomp.UnsupportedMachineError) as error:
        say(f"the sandbox could not be made: {error}")
        return EXIT_BROKEN
    return execute(options.command, options.env)


def join(arguments: list[str]) -> int:
    """A further command beside the first one: under the same filter, in the network that is there."""
    options = parse(arguments)
    try:
        if options.size:
            set_size(options.size)
        wait_for_the_first()
        seccomp.install()
    except (OSError, seccomp.UnsupportedMachineError) as error:
        say(f"the command cannot be started: {error}")
        return EXIT_BROKEN
    return execute(options.command, options.env)


def wait_for_the_first() -> None:
    """Until it has compared the mounts and listens as the proxy: not for long, should that have ended."""
    address, port = PROXY
    number = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    listens = f" {number:08X}:{port:04X} 00000000:0000 0A "  # proc_net_tcp.rst of the kernel
    for _ in range(WAIT_TURNS):
        with open("/proc/net/tcp", encoding="ascii") as file:
            if listens in file.read():
                return
        select.select([], [], [], WAIT_TURN)


def compare(mounted: list[str]) -> None:
    """Raises OSError unless every mount shows the very file that the run looked at before it asked for it.

    The engine mounts by name. Nothing of the agent's runs yet, and no other file can have the numbers: the
    run holds the one that has them.
    """
    for word in mounted:
        device, inode, target = word.split(":", 2)
        found = os.stat(target)
        if (found.st_dev, found.st_ino) != (int(device), int(inode)):
            raise OSError(f"{target} is not what was to be mounted there: its source was replaced meanwhile")


def make_home() -> None:
    """As the agent, so that it is the agent's. It is there where the run has put something in it."""
    if not os.path.isdir(HOME):
        os.mkdir(HOME, 0o700)


def say(text: str) -> None:
    os.write(2, f"moat: {text}\n".encode(errors="replace"))


def parse(arguments: list[str]) -> Options:
    options = Options()
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            break
        if word == "--ingress":
            options.ingress = True
            continue
        value = next(rest)
        if word == "--size":
            columns, _, rows = value.partition("x")
            options.size = (int(columns), int(rows))
        elif word == "--host-port":
            options.ports.append(int(value))
        elif word == "--capture":
            options.captured.append(int(value))
        elif word == "--env":
            options.env.append(value)
        elif word == "--mounted":
            options.mounted.append(value)
    options.command = list(rest)
    return options


def set_size(size: tuple[int, int]) -> None:
    """Before the program starts: a size that arrives later makes a full-screen program draw twice."""
    import fcntl
    import struct
    import termios

    columns, rows = size
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def bind(ports: list[int], captured: list[int]) -> list[Listener]:
    """Every listener of the sandbox. No capability is needed: the namespace has no privileged ports."""
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind(DNS)
    found = [Listener("dns", dns), Listener("proxy", listen(PROXY))]
    everywhere = [*CAPTURED, *((CAPTURED[0][0], port) for port in captured)]
    found += [Listener("captured", listen(address)) for address in everywhere]
    return found + [Listener("host", listen((HOST_ADDRESS, port))) for port in ports]


def listen(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    sock.listen(512)
    return sock


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    return sock


def start_forwarder(listeners: list[Listener]) -> None:
    """Fork twice: the forwarder is nobody's child, or the command would meet a child that it never made.

    An agent that kills the forwarder, or drives it, gains nothing: all it can do is use the run's
    socket, which the agent may do anyway. It only loses its own network.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        for listener in listeners:
            listener.sock.close()
        return
    os.setsid()  # out of the terminal's process groups: ^C and ^Z are not for the forwarder
    if os.fork():
        os._exit(0)
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.chdir("/")
        forward(listeners)
    finally:
        os._exit(1)


def forward(listeners: list[Listener]) -> None:
    """Serve. What it imports takes a processor that the command can use first, unless something waits."""
    select.select([listener.sock for listener in listeners], [], [], HEAD_START)
    if TYPE_CHECKING:
        from moat.runtime import sandbox_forward
    else:
        import sandbox_forward

    sandbox_forward.serve((listener.kind, listener.sock) for listener in listeners)


def execute(command: list[str], env: list[str]) -> int:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # the interpreter ignores them; programs expect them
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment(env))  # noqa: S606 - no shell is wanted
    except FileNotFoundError:
        say(f"{command[0]}: command not found")
        return EXIT_MISSING
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        return EXIT_DENIED


def environment(more: list[str]) -> dict[bytes, bytes]:
    """As the container was given it: the interpreter adds LC_CTYPE to its own (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        entries = file.read().split(b"\0") + [os.fsencode(entry) for entry in more]
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


def send_signal(number: int) -> int:
    """To the foreground process group of the terminal, which the engine's own `kill` cannot reach."""
    found = [process(name) for name in os.listdir("/proc") if name.isdigit()]
    mine = [item for item in found if item and item.parent == 1]
    if not mine:
        return 1
    command = min(mine, key=lambda item: item.started)  # the init's first child
    try:
        if command.foreground > 0:
            os.killpg(command.foreground, number)
        else:
            os.kill(command.pid, number)
    except OSError:
        return 1
    return 0


def process(name: str) -> Process | None:
    try:
        with open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None  # gone meanwhile
    return Process(int(name), int(fields[1]), int(fields[5]), int(fields[19]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
