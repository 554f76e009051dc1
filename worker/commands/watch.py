"""`coatstream watch`: labels as they are published, one line each."""

import os
import random
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from config.settings import SettingsTree
from worker.backoff import Backoff
from worker.broker.connection import connect
from worker.broker.labels import LabelReader, PublishedLabel
from worker.broker.preflight import check_server, check_types
from worker.broker.queues import queues_of
from worker.commands.terminal import shown, shown_json
from worker.errors import RedisUnavailable

RETRY = Backoff(first=0.05, longest=2.0)
LONGEST_BLOCK = 1.0  # seconds


def run_watch(settings: SettingsTree, *, source: str | None, count: int, as_json: bool) -> int:
    """Follow the labels stream from now on, until `count` labels (0: for ever) were shown, Ctrl-C, or nobody reads. 0.

    Raises ConfigError, and RedisUnavailable where Redis cannot be reached at the start; later that is waited for.
    """
    block = min(LONGEST_BLOCK, settings.redis.socket_timeout / 5)
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        streams = sorted({queue.labels for queue in queues_of(settings)})
        check_types(client, dict.fromkeys(streams, "stream"))
        reader = LabelReader(client, streams, after=None, block=block)
        reader.start()
        try:
            _show(reader, source=source, count=count, as_json=as_json)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:  # `coatstream watch | head`; typer would make it exit code 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
    return 0


def _show(reader: LabelReader, *, source: str | None, count: int, as_json: bool) -> None:
    console = Console(highlight=False)
    shown_so_far = 0
    for label in _follow(reader):
        if source is not None and label.source != source:
            continue
        if as_json:
            print(shown_json(label.document), flush=True)
        elif console.is_terminal:
            console.print(_line(label), soft_wrap=True)
        else:  # print, because rich ends a process with code 1 when its reader has gone
            print(_line(label).plain, flush=True)
        shown_so_far += 1
        if shown_so_far == count:
            return


def _follow(reader: LabelReader) -> Iterator[PublishedLabel]:
    """Every label from now on. While Redis is away: one line, and further tries."""
    rng, failures = random.Random(), 0
    while True:
        try:
            labels = reader.read()
        except RedisUnavailable as trouble:
            if not failures:
                print(f"coatstream: {shown(str(trouble))}; trying again until it is back", file=sys.stderr, flush=True)
            time.sleep(RETRY.delay(failures, rng))
            failures += 1
        else:
            failures = 0
            yield from labels


def _line(label: PublishedLabel) -> Text:
    """When it was published, source, label, score, and the frame's age at that time."""
    return Text.assemble(
        (_clock(label.published_at), "dim"),
        "  ",
        (f"{shown(label.source):<16}", "cyan"),
        "  ",
        (f"{shown(label.label):<32}", "bold"),
        f"  {label.score:6.1%}",
        (f"  {1000 * (label.published_at - label.captured_at):7.0f} ms", "dim"),
    )


def _clock(moment: float) -> str:
    """Local time of day, to the millisecond."""
    return f"{datetime.fromtimestamp(moment, UTC).astimezone():%H:%M:%S.%f}"[:-3]
