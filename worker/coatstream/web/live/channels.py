"""Listens to Pub/Sub channels while they are wanted: previews, and labels of one source. One connection for all."""

import threading
from collections.abc import Callable
from typing import Any, Final

import structlog

from coatstream.broker.connection import Client, connect
from coatstream.broker.failures import calls
from coatstream.errors import REDIS_TROUBLE, Retries
from coatstream.settings.model import RedisSettings

LOOK_UP: Final = 0.25  # seconds until a channel that is wanted anew is listened to

OnMessage = Callable[[str, bytes], None]  # channel, message; called in the listening thread


class Channels:
    """`run` in a thread of its own. Without wishes it has no connection."""

    def __init__(self, settings: RedisSettings, on_message: OnMessage) -> None:
        self._settings = settings
        self._on_message = on_message
        self._wanted: frozenset[str] = frozenset()
        self._wake = threading.Event()
        self._over = False
        self._log = structlog.get_logger("web")

    def want(self, names: frozenset[str]) -> None:
        """From now on these and no others. Any thread."""
        self._wanted = names
        self._wake.set()

    def close(self) -> None:
        """No more is wanted, ever: `run` ends."""
        self._over = True
        self.want(frozenset())

    def run(self, stop: threading.Event) -> None:
        retries = Retries()
        while not stop.is_set() and not self._over:
            self._wake.wait(1.0)
            self._wake.clear()
            if not self._wanted:
                continue
            try:
                with connect(self._settings) as client:
                    self._listen(client, stop, retries)
            except REDIS_TROUBLE as trouble:
                if not retries.failures:
                    self._log.info("no previews and live labels for now", trouble=str(trouble))
                stop.wait(retries.failed(trouble))
                self._wake.set()

    def _listen(self, client: Client, stop: threading.Event, retries: Retries) -> None:
        heard: frozenset[str] = frozenset()
        with calls("previews cannot be listened to", client), client.pubsub(ignore_subscribe_messages=True) as listener:
            while (wanted := self._wanted) and not stop.is_set():
                if wanted != heard:
                    _change(listener, heard, wanted)
                    heard = wanted
                message = listener.get_message(timeout=LOOK_UP)
                retries.worked()
                if message is not None and message["type"] == "message":
                    self._on_message(message["channel"].decode("utf-8", "replace"), message["data"])


def _change(listener: Any, heard: frozenset[str], wanted: frozenset[str]) -> None:
    """New ones first: a listener without any channel cannot be read."""
    if new := wanted - heard:
        listener.subscribe(*new)
    if old := heard - wanted:
        listener.unsubscribe(*old)
