"""A real Chromium for the tests of the page: Debian's, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.absence import missing

OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser of its own."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing("no Chromium on this machine (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=Path(path), args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class Complaints:
    """What a page's console complains of: errors, refused content, exceptions."""

    def __init__(self, page: Page) -> None:
        self.lines: list[str] = []
        page.on("console", lambda line: self.lines.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.lines.append(str(error)))
