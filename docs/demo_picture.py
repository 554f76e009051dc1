"""Makes docs/demo.svg: the demo's pictures, and what `coatstream demo` really shows of them on a terminal.

pip install pyte && python docs/demo_picture.py
"""

import base64
import io
import os
import pty
import re
import select
import signal
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

import cv2
import pyte
from PIL import Image
from rich.console import Console
from rich.text import Text

COLUMNS, ROWS, SECONDS = 72, 30, 180.0
LABELS = ("sulphur-crested cockatoo", "espresso", "tiger cat", "tripod")  # the moment is chosen: all of them are seen
TIMES = 5  # that the first of them is
FONTS = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, Liberation Mono, monospace"
GREY = "#76808b"  # can be read on white and on black
ASSETS = Path(__file__).parents[1] / "worker" / "coatstream" / "assets"
CLIP, CLIP_FRAME = "cockatoo_360p.mp4", 200  # of frames 177 to 224, where the bird is in the picture for certain
PHOTOS = {"table": "coffee.png", "cat": "chelsea.png", "field": "camera.png"}  # source -> photo, as the demo has them
WIDTH, HEIGHT, GAP = 220, 122, 34  # of a picture, and below it


def main() -> None:
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(COLUMNS=str(COLUMNS), LINES=str(ROWS), TERM="xterm-256color")
        os.execvp(sys.executable, [sys.executable, "-m", "coatstream", "demo"])
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and not _worth_showing(" ".join(screen.display)):
        if select.select([terminal], [], [], 0.1)[0]:
            stream.feed(os.read(terminal, 65536))
    shown = _terminal(screen)
    os.kill(child, signal.SIGINT)
    with suppress(OSError):  # EIO: the child has closed its side
        while os.read(terminal, 65536):
            pass
    os.waitpid(child, 0)
    Path(__file__).with_name("demo.svg").write_text(_beside(_pictures(), shown))


def _worth_showing(text: str) -> bool:
    return all(label in text for label in LABELS) and text.count(LABELS[0]) >= TIMES


def _terminal(screen: pyte.Screen) -> str:
    """The table, without what stands above it."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    head = next((row for row, line in enumerate(screen.display) if line.startswith("time ")), 0)
    for row in range(head, ROWS):
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


def _pictures() -> dict[str, Image.Image]:
    clip = cv2.VideoCapture(str(ASSETS / CLIP))
    frames = (clip.read()[1] for _ in range(CLIP_FRAME + 1))
    bird = next(islice(frames, CLIP_FRAME, None))
    photos = {source: Image.open(ASSETS / name).convert("RGB") for source, name in PHOTOS.items()}
    return {"cockatoo": Image.fromarray(cv2.cvtColor(bird, cv2.COLOR_BGR2RGB)), **photos}


def _beside(pictures: dict[str, Image.Image], terminal: str) -> str:
    """The pictures in a column, the terminal to the right of them."""
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', terminal).groups())  # type: ignore[union-attr]
    left, total = WIDTH + 60, len(pictures) * (HEIGHT + GAP)
    scale = (total - GAP) / height
    parts = [_picture(source, image, index * (HEIGHT + GAP)) for index, (source, image) in enumerate(pictures.items())]
    middle = total / 2 - GAP / 2
    arrow = f'<path d="M{WIDTH + 14} {middle}h28m-9 -8l9 8l-9 8" fill="none" stroke="{GREY}" stroke-width="3"/>'
    inner = terminal.replace("<svg ", f'<svg x="{left}" y="0" width="{width * scale}" height="{height * scale}" ', 1)
    box = f"0 0 {left + width * scale:.0f} {total}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{"".join(parts)}{arrow}{inner}</svg>\n'


def _picture(source: str, image: Image.Image, top: int) -> str:
    small = io.BytesIO()
    scale = max(2 * WIDTH / image.width, 2 * HEIGHT / image.height)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, above = (resized.width - 2 * WIDTH) // 2, (resized.height - 2 * HEIGHT) // 2
    resized.crop((left, above, left + 2 * WIDTH, above + 2 * HEIGHT)).save(small, "JPEG", quality=72)
    data = base64.b64encode(small.getvalue()).decode()
    return (
        f'<image x="0" y="{top}" width="{WIDTH}" height="{HEIGHT}" href="data:image/jpeg;base64,{data}"/>'
        f'<text x="0" y="{top + HEIGHT + 20}" font-family="{FONTS}" font-size="18" fill="{GREY}">{source}</text>'
    )


if __name__ == "__main__":
    main()
