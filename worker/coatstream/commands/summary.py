"""What the log reports once at the start and once at the end of a worker: one line for each thing."""

from collections.abc import Callable
from typing import Final

import structlog

from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.keys import queues_of
from coatstream.cameras.address import public_url
from coatstream.commands.audit_view import size_of
from coatstream.service import Ready
from coatstream.settings.model import SettingsTree
from coatstream.web.access import Access
from coatstream.web.server import link

NAMED: Final = 20  # cameras that get a line each

_log = structlog.get_logger("service")


def start_summary(settings: SettingsTree) -> Callable[[Ready], None]:
    """What logs, once the worker is ready, what it reads, where it writes, and its page. Server, model and engine have
    their lines before.
    """

    def log(ready: Ready) -> None:
        if settings.queue.enabled:
            for queue in queues_of(settings):
                _log.info("queue", frames=queue.stream, group=queue.group, labels=queue.labels, dead=queue.dead)
        for camera in settings.cameras[:NAMED]:
            _log.info("camera", name=camera.name, url=public_url(camera), fps=camera.fps, shared=camera.shared)
        if left_out := settings.cameras[NAMED:]:
            _log.info("more cameras", count=len(left_out))
        if settings.cameras:
            pictures = settings.pictures
            days = f"{pictures.max_age / 86_400:g} days"
            kept = f"{size_of(pictures.max_bytes)}, {days}" if pictures.enabled else "none"
            _log.info("events", stream=fleet_keys(settings).events, pictures=kept)
        if not Access.of(settings.http).shut:
            _log.info("page", link=link(settings.http.host, ready.port))

    return log
