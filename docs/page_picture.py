"""Makes docs/page-light.jpg and docs/page-dark.jpg: the page over a real run of `coatstream demo`, in a real Chromium.

The demo's camera and photos, a second camera over the same clip, and one that does not exist.

    apt-get install chromium && pip install playwright && python docs/page_picture.py
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1280, "height": 640}
SECONDS = 240
DOCS = Path(__file__).parent
ASSETS = DOCS.parent / "worker" / "coatstream" / "assets"
TAG = "sulphur-crested cockatoo"
CAMERAS = [
    {"name": "meadow", "url": str(ASSETS / "cockatoo_360p.mp4"), "fps": 2, "realtime": True, "loop": True},
    {"name": "yard", "url": "rtsp://127.0.0.1:9/stream1", "open_timeout": 3},
]
PORT = 18_080


def main() -> None:
    environment = os.environ | {"COATSTREAM_CAMERAS": json.dumps(CAMERAS), "COATSTREAM_HTTP__PORT": str(PORT)}
    command = [sys.executable, "-m", "coatstream", "demo", "--seconds", str(SECONDS)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as demo, sync_playwright() as playwright:
        try:
            options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport=SIZE, color_scheme=scheme)
                reach(page)
                page.wait_for_selector(
                    f".tile[data-state=live] li:not(.faint) .tag >> text={TAG}", timeout=1000 * SECONDS
                )
                page.wait_for_timeout(12_000)  # until rates are those of ten seconds
                page.wait_for_selector(
                    f".tile[data-state=live] li:not(.faint) .tag >> text={TAG}", timeout=1000 * SECONDS
                )
                page.screenshot(path=DOCS / f"page-{scheme}.jpg", type="jpeg", quality=85)
                page.close()
        finally:
            demo.terminate()


def reach(page: Page) -> None:
    """The demo may still be starting."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            page.goto(f"http://127.0.0.1:{PORT}/")
            page.wait_for_selector(".tile[data-state=down]", timeout=60_000)
            page.wait_for_selector(".preview:not(.empty)", timeout=60_000)
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


if __name__ == "__main__":
    main()
