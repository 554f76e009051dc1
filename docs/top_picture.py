"""Makes docs/top-light.svg and docs/top-dark.svg: what `coatstream top` shows of a demo with a camera that is down.

python docs/top_picture.py
"""

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from coatstream.broker.connection import connect
from coatstream.broker.embedded import embedded_server
from coatstream.commands.top import looking
from coatstream.commands.top_view import TopChoice, screen
from coatstream.settings.model import SettingsTree
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI

COLUMNS, ROWS, SECONDS, PATIENCE = 80, 24, 90, 120.0
FONTS = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, Liberation Mono, monospace"
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": MONOKAI}
CLIP = Path(__file__).parents[1] / "worker" / "coatstream" / "assets" / "cockatoo_360p.mp4"
CAMERAS = [
    {"name": "aviary", "url": str(CLIP), "fps": 2, "realtime": True, "loop": True},
    {"name": "yard", "url": "rtsp://127.0.0.1:9/main"},
]


def main() -> None:
    with embedded_server("--appendonly", "yes") as server:
        demo = subprocess.Popen(
            [sys.executable, "-m", "coatstream", "demo", "--seconds", str(SECONDS), "--redis", server.url],
            env={**os.environ, "COATSTREAM_CAMERAS": json.dumps(CAMERAS)},
            stdout=subprocess.DEVNULL,
        )
        try:
            settings = SettingsTree.model_validate({"redis": {"url": server.url}})
            with connect(settings.redis) as client:
                look, until = looking(client, settings), time.monotonic() + PATIENCE
                while not _is_worth_showing(seen := look()) and time.monotonic() < until:
                    time.sleep(0.2)
        finally:
            demo.terminate()
            demo.wait(60)
    lines = screen(seen, TopChoice(), where="redis://10.0.0.5:6379/0", width=COLUMNS, height=ROWS)
    for name, theme in THEMES.items():
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        for line in lines:
            console.print(line)
        picture = console.export_svg(title="coatstream top", theme=theme)
        picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # fonts of the reader's own
        picture = picture.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
        Path(__file__).with_name(f"top-{name}.svg").write_text(picture)


def _is_worth_showing(seen: object) -> bool:
    snapshot = getattr(seen, "snapshot", None)
    cameras = snapshot.cameras if snapshot else ()
    return sum(bool(camera.tags) for camera in cameras) > 0 and any(camera.state == "down" for camera in cameras)


if __name__ == "__main__":
    main()
