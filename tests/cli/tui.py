"""A small full-screen program: draws its size on the alternate screen, echoes keys, redraws on SIGWINCH."""

import os
import select
import signal
import sys
import termios
import tty

RESTORE = "\x1b[?2004l\x1b[?1000l\x1b[?25h\x1b[?1049l"


def draw(*_: object) -> None:
    size = os.get_terminal_size(1)
    text = f"\x1b[2J\x1b[Hsize {size.columns}x{size.lines}\x1b[3;1Hkeys {''.join(keys)!r}"
    os.write(1, text.encode())


keys: list[str] = []
before = termios.tcgetattr(0)
tty.setraw(0)
signal.signal(signal.SIGWINCH, draw)
os.write(1, b"\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[?1000h")
draw()
while True:
    try:
        if not select.select([0], [], [], 0.05)[0]:
            continue
    except InterruptedError:
        continue
    data = os.read(0, 1024).decode()
    if data == "q":
        break
    if data == "!":
        sys.exit(7)  # without cleaning up
    keys.append(data)
    draw()
termios.tcsetattr(0, termios.TCSADRAIN, before)
os.write(1, RESTORE.encode())
