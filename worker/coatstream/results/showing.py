"""Publishes previews of this worker's sources while they are wished for. Costs one read of the wishes a beat otherwise.

Raises nothing and holds nothing up: what Redis refuses or does not get is no preview.
"""

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.picture_keys import PictureKeys
from coatstream.errors import REDIS_TROUBLE, Retries
from coatstream.frames.still import Still
from coatstream.results.previews import EVERY, QUALITY, preview_message, wished_side

MOST_ASKED: Final = 500  # wishes of one call
REPEATED: Final = 4  # beats after which a picture is shown again where there is no newer one: who came late has none
AFTER_TROUBLE: Final = 2.0  # seconds until a server in trouble is asked again: labels go first
_TURN: Final = 0.8  # of a beat, for which a turn lasts


class PreviewSource(Protocol):
    """Where the publisher finds pictures. Called from its thread; neither blocks nor raises.

    shared  whether other workers have pictures of the same sources: then they take turns
    """

    shared: bool

    def names(self) -> Iterable[str]:
        """The sources that there are now, at most some hundreds."""

    def wished(self, names: Collection[str]) -> None:
        """These are to be shown now, and no others."""

    def newest(self, name: str) -> Still | None:
        """The newest picture."""


class PreviewPublisher:
    """One worker's. `run` is its thread. `published`: previews so far."""

    def __init__(self, client: Client, keys: PictureKeys, sources: Sequence[PreviewSource]) -> None:
        self.published = 0
        self._client = client
        self._keys = keys
        self._sources = sources
        self._last: dict[str, tuple[str, int]] = {}  # source -> frame of its last preview, and the beat of that
        self._beats = 0
        self._log = structlog.get_logger("previews")

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, a beat every half second."""
        retries, pause = Retries(), EVERY
        while not stop.wait(pause):
            try:
                self.beat()
            except REDIS_TROUBLE as trouble:  # others report the outage
                if retries.failures == 0 and not stop.is_set():
                    self._log.warning("no previews", trouble=str(trouble))
                pause = max(AFTER_TROUBLE, retries.failed(trouble))
            else:
                retries.worked()
                pause = EVERY

    def beat(self) -> None:
        """Read the wishes, and publish one preview of each source that is wished for, if there is a new one.

        Raises RedisUnavailable, RedisRefuses.
        """
        shown: dict[str, tuple[str, int]] = {}
        self._beats += 1
        for source in self._sources:
            sides = self._wishes(list(source.names()))
            source.wished(sides.keys())
            if sides:
                shown |= self._publish(source, sides)
        self._last = shown

    def _wishes(self, names: Sequence[str]) -> dict[str, int]:
        """Pixels by source."""
        found: dict[str, int] = {}
        for first in range(0, len(names), MOST_ASKED):
            some = names[first : first + MOST_ASKED]
            with calls("the wishes for previews cannot be read", self._client):
                values = self._client.mget([self._keys.wish(name) for name in some])
            found |= {name: side for name, value in zip(some, values, strict=True) if (side := wished_side(value))}
        return found

    def _publish(self, source: PreviewSource, sides: Mapping[str, int]) -> dict[str, tuple[str, int]]:
        """Returns which frame of each source is the last one shown, and when that was."""
        shown = {name: self._last[name] for name in sides if name in self._last}
        new = {
            name: still
            for name in sides
            if (still := source.newest(name)) is not None and not self._is_shown(name, still)
        }
        if source.shared:
            new = self._whose_turn_it_is(new)
        if new:
            pipeline = self._client.pipeline(transaction=False)
            for name, still in new.items():
                jpeg = still.jpeg(side=sides[name], quality=QUALITY)
                pipeline.publish(self._keys.previews(name), preview_message(name, still.captured_at, jpeg))
            with calls("previews cannot be published", self._client):
                pipeline.execute()
        self.published += len(new)
        return shown | {name: (still.frame_id, self._beats) for name, still in new.items()}

    def _is_shown(self, name: str, still: Still) -> bool:
        frame, beat = self._last.get(name, ("", 0))
        return frame == still.frame_id and self._beats - beat < REPEATED

    def _whose_turn_it_is(self, new: Mapping[str, Still]) -> dict[str, Still]:
        """Those of which no other worker publishes one now."""
        mine: dict[str, Still] = {}
        for name, still in new.items():
            with calls("the turn for a preview cannot be taken", self._client):
                if self._client.set(self._keys.turn(name), 1, nx=True, px=round(_TURN * EVERY * 1000)):
                    mine[name] = still
        return mine
