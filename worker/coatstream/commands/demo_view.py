"""What the demo shows: a live table on a terminal, plain lines elsewhere, and a summary at the end.

Reads the labels stream like any consumer; knows nothing of how the labels came about.
"""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from coatstream.commands.terminal import shown, table
from coatstream.errors import RedisUnavailable
from coatstream.frames.model import ModelInfo
from coatstream.results.events.event import EventKind
from coatstream.results.events.reader import EventReader, PublishedEvent
from coatstream.results.labels import LabelReader, PublishedLabel
from coatstream.telemetry.ledger import Account

RECENT = 12  # labels in the table
_OF_TAGS = (EventKind.TAG_STARTED, EventKind.TAG_ENDED)
MAX_AGES = 100_000  # of the newest labels, for the percentiles


class Screen(Protocol):
    """Where the demo writes. Called from one thread at a time."""

    def title(self, text: str) -> None:
        """What runs."""

    def labels(self, labels: Sequence[PublishedLabel]) -> None:
        """What has just been published."""

    def tags(self, events: Sequence[PublishedEvent]) -> None:
        """Tags that have just started or ended."""


class PlainScreen:
    """A line for each label: for logs and pipes."""

    def title(self, text: str) -> None:
        print(text, flush=True)

    def labels(self, labels: Sequence[PublishedLabel]) -> None:
        for label in labels:
            moment = time.strftime("%H:%M:%S", time.localtime(label.published_at))
            source, name = shown(label.source), shown(label.label)
            print(f"{moment}  {source:<12} {name:<28} {label.score:6.1%} {_age(label) * 1000:7.0f} ms", flush=True)

    def tags(self, events: Sequence[PublishedEvent]) -> None:
        for event in events:
            moment = time.strftime("%H:%M:%S", time.localtime(event.at))
            if event.kind == EventKind.TAG_STARTED:
                what = "starts"
            else:
                what = f"ends after {float(event.detail.get('duration', 0)):.1f} s"
            tag = shown(str(event.detail.get("tag", "")))
            print(f"{moment}  {shown(event.source):<12} tag {tag!r} {what}", flush=True)


class TableScreen:
    """A table of the newest labels, redrawn in place."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._title = ""
        self._recent: deque[PublishedLabel] = deque(maxlen=RECENT)
        self._present: dict[tuple[str, str], float] = {}  # source and tag -> Unix seconds of its start

    def title(self, text: str) -> None:
        self._title = text
        self.labels([])

    def labels(self, labels: Sequence[PublishedLabel]) -> None:
        self._recent.extend(labels)
        self._draw()

    def tags(self, events: Sequence[PublishedEvent]) -> None:
        for event in events:
            tag = event.source, str(event.detail.get("tag", ""))
            if event.kind == EventKind.TAG_STARTED:
                self._present[tag] = float(event.detail.get("started_at", event.at))
            else:
                self._present.pop(tag, None)
        self._draw()

    def _draw(self) -> None:
        self._live.update(Group(Text(self._title, style="dim"), self._tags(), self._table()))

    def _tags(self) -> Text:
        now = time.time()
        lines = [
            f"{shown(source):<12}  {shown(tag)} for {max(0.0, now - since):.0f} s"
            for (source, tag), since in sorted(self._present.items())
        ]
        return Text("\n".join(["", "tags: labels that last", *(lines or ["none yet"]), ""]), style="bold")

    def _table(self) -> Table:
        made = table("time", "source", "label", "score", "age", right=("score", "age"))
        made.columns[1].min_width, made.columns[2].min_width = 10, 28
        for label in reversed(self._recent):
            made.add_row(
                time.strftime("%H:%M:%S", time.localtime(label.published_at)),
                escape(shown(label.source)),
                escape(shown(label.label)),
                f"[green]{label.score:.1%}[/]" if label.score >= 0.5 else f"[dim]{label.score:.1%}[/]",
                f"{_age(label) * 1000:.0f} ms",
            )
        return made


class DemoView:
    """Follows the labels in a thread of its own until `stop`."""

    def __init__(self, reader: LabelReader, events: EventReader, screen: Screen) -> None:
        self._reader = reader
        self._events = events
        self._screen = screen
        self._stop = threading.Event()
        self._ages: deque[float] = deque(maxlen=MAX_AGES)

    def ready(self, info: ModelInfo, link: str, *, seconds: float) -> None:
        """The worker is up: show its model, where its page is, and what ends it (`seconds` 0: a person)."""
        end = f"it ends after {seconds:g} s, or with Ctrl-C" if seconds else "Ctrl-C ends"
        self._screen.title(f"{info.name} ({info.weights}) on {info.device}; the page: {link}; {end}")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Show labels while entered; on leaving, first what is still unread."""
        thread = threading.Thread(target=self._follow, name="view", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=5)

    def _follow(self) -> None:
        while True:
            last_look = self._stop.is_set()
            try:
                labels = self._reader.read()
                tags = [event for event in self._events.read() if event.kind in _OF_TAGS]
            except RedisUnavailable:
                if self._stop.wait(0.5):
                    return
                continue
            self._ages.extend(_age(label) for label in labels)
            if tags:
                self._screen.tags(tags)
            if labels:
                self._screen.labels(labels)
            elif last_look:
                return

    def ages(self) -> list[float]:
        """Seconds from capture to publication, of the newest labels, ascending."""
        return sorted(self._ages)


@contextmanager
def make_screen() -> Iterator[Screen]:
    """A table on a terminal, else lines."""
    if not sys.stdout.isatty():
        yield PlainScreen()
        return
    with Live(console=Console(), refresh_per_second=10) as live, suppress(KeyboardInterrupt):
        yield TableScreen(live)


def summary(account: Account, ages: Sequence[float], *, seconds: float) -> str:
    """The ledger in one line, and how old the labels were."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(account.dropped.items())) or "0"
    dead = f", dead {account.dead.total()}" if account.dead else ""
    old = (
        f"p50 {nearest_rank(ages, 50) * 1000:.0f} ms, p99 {nearest_rank(ages, 99) * 1000:.0f} ms"
        if ages
        else "no labels"
    )
    return (
        f"received {account.received}, published {account.published}, dropped {dropped}{dead}, "
        f"in flight {account.in_flight}; {account.published / max(seconds, 1e-9):.1f} frames/s; "
        f"age at publication {old}"
    )


def nearest_rank(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    return ascending[max(1, math.ceil(len(ascending) * percent / 100)) - 1]


def _age(label: PublishedLabel) -> float:
    return max(0.0, label.published_at - label.captured_at)
