"""What the workers publish: the streams of labels and of events, read from their beginning. Judges nothing."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from coatstream.broker.connection import Client
from redis.exceptions import RedisError

from tests.support.threads import in_background

LABELS: Final = "labels"
EVENTS: Final = "events"


@dataclass(frozen=True, slots=True)
class Label:
    """One label. Its place in a list of them is its place in the stream.

    added          by the server's clock, Unix seconds
    fence          None: the camera is not shared
    top            index of the best class
    """

    camera: str
    worker: str
    fence: int | None
    captured_at: float
    added: float
    size: tuple[int, int] = (0, 0)
    top: int = 0

    @property
    def pid(self) -> int:
        """Of the process that published it: workers are named host-pid-random."""
        return int(self.worker.rsplit("-", 2)[1])


@dataclass(frozen=True, slots=True)
class TagEvent:
    """A tag that started or ended."""

    camera: str
    tag: str
    started: bool
    at: float
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Tail:
    """The labels so far. Survives a server that is away: what it has read stays read."""

    labels: list[Label] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, client: Client) -> None:
        last = "0"
        while not self._stop.is_set():
            try:
                found = client.xread({LABELS: last}, count=5000, block=100)
            except (RedisError, OSError):
                self._stop.wait(0.05)
                continue
            for entry, fields in found[0][1] if found else ():
                last = entry.decode()
                self.labels.append(label_of(last, fields))

    def stop(self) -> None:
        self._stop.set()

    def since(self, moment: float) -> list[Label]:
        """What was added from then on."""
        return list(self.backwards(moment))[::-1]

    def backwards(self, moment: float) -> Iterator[Label]:
        """The newest first, back to that moment."""
        for place in range(len(self.labels) - 1, -1, -1):
            if self.labels[place].added < moment:
                return
            yield self.labels[place]

    def cameras(self, within: float) -> set[str]:
        """The cameras whose labels came in the last `within` seconds."""
        return {label.camera for label in self.backwards(time.time() - within)}


@contextmanager
def tailing(client: Client) -> Iterator[Tail]:
    """The labels as they come."""
    tail = Tail()
    with in_background(lambda: tail.run(client), stop=tail.stop, name="tail"):
        yield tail


def label_of(entry: str, fields: dict[bytes, bytes]) -> Label:
    document = json.loads(fields[b"json"])
    return Label(
        document["source"],
        document["worker"],
        document.get("fence"),
        document["captured_at"],
        int(entry.partition("-")[0]) / 1000,
        (document["width"], document["height"]),
        document["labels"][0]["index"],
    )


def tag_events(client: Client) -> list[TagEvent]:
    """All tags that started or ended, in the order of the stream."""
    documents = [json.loads(fields[b"json"]) for _, fields in client.xrange(EVENTS)]
    return [
        TagEvent(document["source"], document["tag"], document["event"] == "tag.started", document["at"], document)
        for document in documents
        if document["event"] in ("tag.started", "tag.ended")
    ]


def present_tags(client: Client, cameras: Sequence[str]) -> set[tuple[str, str]]:
    """(camera, tag) as the hashes say."""
    return {(camera, tag.decode()) for camera in cameras for tag in client.hkeys(f"tags:{camera}")}


def poll(holds: Callable[[], bool], *, until: float, every: float = 0.02) -> bool:
    """Look again and again until it holds, or until that monotonic second. Return whether it came to hold."""
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(every)
    return True
