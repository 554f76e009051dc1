"""Makes docs/demo.svg: what `coatstream demo` really shows on a terminal, some seconds in.

pip install pyte && python docs/demo_picture.py
"""

import io
import os
import pty
import re
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

COLUMNS, ROWS, SECONDS = 92, 19, 60.0
LABEL = "sulphur-crested cockatoo"  # the moment is chosen: the bird is in the picture, and seen
FONTS = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, Liberation Mono, monospace"


def main() -> None:
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(COLUMNS=str(COLUMNS), LINES=str(ROWS), TERM="xterm-256color")
        os.execvp(sys.executable, [sys.executable, "-m", "coatstream", "demo"])
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and " ".join(screen.display).count(LABEL) < 8:
        if select.select([terminal], [], [], 0.1)[0]:
            stream.feed(os.read(terminal, 65536))
    picture = _render(screen)
    os.kill(child, signal.SIGINT)
    with suppress(OSError):  # EIO: the child has closed its side
        while os.read(terminal, 65536):
            pass
    os.waitpid(child, 0)
    Path(__file__).with_name("demo.svg").write_text(picture)


def _render(screen: pyte.Screen) -> str:
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for row in range(ROWS):
        line = Text()
        for column in range(COLUMNS):
            character = screen.buffer[row][column]
            colour = "" if character.fg == "default" else character.fg
            line.append(character.data, f"{'bold ' if character.bold else ''}{colour}".strip())
        if line.plain.strip():
            line.rstrip()
            console.print(line)
    picture = console.export_svg(title="coatstream demo")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # fonts of the reader's own, none fetched
    return re.sub(r"font-family: Fira Code, monospace", f"font-family: {FONTS}", picture)


if __name__ == "__main__":
    main()
