"""Draws docs/frame.svg, the way of a frame through a worker: python docs/frame_picture.py

Boxes are filled and captions are grey, so that the picture can be read on white and on black.
"""

from pathlib import Path

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2f6fb0", "#b5651d", "#237a5d", "#8a4a80", "#76808b"
WIDTH, HEIGHT = 1000, 400
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


def box(x: int, y: int, width: int, colour: str, title: str, *lines: str) -> str:
    """A filled box with a title and up to three lines."""
    height = 40 + 18 * len(lines)
    texts = [f'<text x="{x + 12}" y="{y + 25}" fill="#fff" font-size="15" font-weight="600">{title}</text>']
    for number, line in enumerate(lines):
        texts.append(f'<text x="{x + 12}" y="{y + 46 + 18 * number}" fill="#fff" font-size="12.5">{line}</text>')
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{colour}"/>' + "".join(texts)


def arrow(*points: tuple[int, int], dashed: bool = False) -> str:
    way = " ".join(f"{x},{y}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{way}" fill="none" stroke="{GREY}" stroke-width="2"{dash} marker-end="url(#tip)"/>'


def caption(x: int, y: int, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" fill="{GREY}" font-size="12.5"{weight}>{text}</text>'


def picture() -> str:
    parts = [
        '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="{GREY}"/></marker>',
        f'<rect x="205" y="34" width="590" height="352" rx="10" fill="none" stroke="{GREY}" stroke-dasharray="3 4"/>',
        caption(217, 26, "one worker", bold=True),
        caption(12, 26, "in", bold=True),
        caption(832, 26, "out: Redis", bold=True),
        box(10, 70, 150, PURPLE, "cameras", "RTSP, HTTP, USB,", "files, folders"),
        box(10, 262, 150, GREEN, "Redis", "stream frames,", "from any program"),
        box(
            222,
            52,
            200,
            PURPLE,
            "cameras",
            "a process for each camera:",
            "read, sample, resize,",
            "measure the picture",
        ),
        box(222, 244, 200, GREEN, "queue", "read ahead, check,", "decode, resize;", "hold a lease on each entry"),
        box(490, 52, 140, BLUE, "mailbox", "the one buffer:", "live: newest only,", "queue: waits"),
        box(490, 190, 140, BLUE, "batch", "when the engine", "is free; sources", "in turn"),
        box(650, 190, 132, ORANGE, "engine", "OpenVINO, CoaT", "rewritten, torch;", "GPU or CPU"),
        box(570, 306, 212, GREEN, "publish and settle", "one atomic step in Redis:", "label, drop or dead letter"),
        box(830, 262, 160, GREEN, "labels", "stream, channel,", "newest by source"),
        box(830, 352, 160, GREEN, "frames:dead"),
        box(830, 70, 160, PURPLE, "events, tags", "start and end, camera", "states, sick pictures"),
        arrow((160, 108), (220, 108)),
        arrow((160, 300), (220, 300)),
        arrow((422, 98), (488, 98)),
        arrow((422, 290), (455, 290), (455, 120), (488, 120)),
        arrow((560, 146), (560, 188)),
        arrow((630, 236), (648, 236)),
        arrow((716, 284), (716, 304)),
        arrow((782, 330), (806, 330), (806, 300), (828, 300)),
        arrow((782, 360), (806, 360), (806, 372), (828, 372)),
        arrow((782, 318), (790, 318), (790, 108), (828, 108)),
    ]
    body = "\n  ".join(parts)
    title = "The way of a frame: cameras or queue, mailbox, batch, engine, publish and settle, labels"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{FONT}" role="img">\n'
        f"  <title>{title}</title>\n  {body}\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("frame.svg").write_text(picture(), "utf-8")
