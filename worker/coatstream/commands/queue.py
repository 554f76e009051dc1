"""`coatstream queue`: the queues at a glance, once or as they change, or as metrics. Loads no model."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from rich.console import Group
from rich.live import Live
from rich.text import Text

from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue, queues_of
from coatstream.broker.preflight import check_server
from coatstream.commands.audit_view import room_of, sum_of
from coatstream.commands.terminal import complain, print_json, shown, table, wide_console
from coatstream.errors import RedisUnavailable, Retries
from coatstream.pipeline.threads import in_thread
from coatstream.queue.metrics import QueueMetrics
from coatstream.queue.monitor import Monitor
from coatstream.queue.overview import QueueOverview, overview
from coatstream.settings.model import HttpSettings, QueueSettings, SettingsTree
from coatstream.supervisor import STOP_SIGNALS
from coatstream.telemetry import logs
from coatstream.telemetry.metrics import StatusCollector
from coatstream.telemetry.telemetry import Telemetry
from coatstream.web.app import make_app
from coatstream.web.server import link, serve

EVERY: Final = 2.0  # seconds between two looks of --watch
TOP: Final = 10  # sources and consumers in a table


def show_queue(settings: SettingsTree, *, watch: bool, as_json: bool) -> int:
    """Each queue, once, or every `EVERY` seconds until Ctrl-C. 0. Raises RedisUnavailable where it is away at once."""
    queues = queues_of(settings)
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        with suppress(KeyboardInterrupt):
            looks = _again(client, queues) if watch else iter([[overview(client, queue) for queue in queues]])
            _print(looks, settings.queue, as_json=as_json, live=watch)
    return 0


def _again(client: Client, queues: tuple[Queue, ...]) -> Iterator[list[QueueOverview]]:
    """For ever. While Redis is away: one line, and further tries."""
    retries = Retries()
    while True:
        try:
            found = [overview(client, queue) for queue in queues]
        except RedisUnavailable as trouble:
            if not retries.failures:
                complain(f"{shown(str(trouble))}; trying again until it is back")
            time.sleep(retries.failed(trouble))
        else:
            retries.worked()
            yield found
            time.sleep(EVERY)


def _print(looks: Iterator[list[QueueOverview]], limits: QueueSettings, *, as_json: bool, live: bool) -> None:
    console = wide_console()
    if as_json:
        for found in looks:
            for one in found:
                print_json(_document(one))
    elif live and console.is_terminal:
        with Live(console=console, auto_refresh=False, screen=True) as screen:
            for found in looks:
                screen.update(_view(found, limits), refresh=True)
    else:
        for found in looks:
            console.print(_view(found, limits))


def _document(found: QueueOverview) -> dict[str, Any]:
    """One queue; the names are those of the metrics where there is one."""
    return {
        "stream": found.stream,
        "depth": found.depth.entries,
        "oldest_age": round(found.depth.oldest_age, 3),
        "in_work": found.depth.pending,
        "stranded": found.stranded,
        "dead": found.depth.dead,
        "rate": round(found.rate, 3),
        "looked_at": found.looked_at,
        "sources": found.sources,
        "consumers": [asdict(one) for one in found.consumers],
        "books": {**asdict(found.audit), "unaccounted": found.audit.unaccounted, "gone": found.audit.gone},
    }


def _view(overviews: list[QueueOverview], limits: QueueSettings) -> Group:
    return Group(*(part for found in overviews for part in _parts(found, limits)))


def _parts(found: QueueOverview, limits: QueueSettings) -> Iterator[Any]:
    depth = found.depth
    yield Text(f"queue {shown(found.stream)}", "bold")
    yield Text(
        f"  {depth.entries:,} unfinished, the oldest {depth.oldest_age:,.1f} s old; {depth.pending:,} in work, "
        f"{found.stranded:,} stranded; {found.rate:,.1f} labels/s"
    )
    yield Text(f"  {sum_of(found.audit)}")
    yield Text(f"  dead letters: {room_of(found.audit, limits)}")
    if found.sources:
        made = table(f"  source (of the oldest {found.looked_at:,})", "entries", right=("entries",))
        for source, count in list(found.sources.items())[:TOP]:
            made.add_row(Text(f"  {shown(source)}"), f"{count:,}")
        yield made
    made = table("  consumer", "in work", "labels/s", "idle", right=("in work", "labels/s", "idle"))
    for one in sorted(found.consumers, key=lambda one: -one.rate)[:TOP]:
        made.add_row(Text(f"  {shown(one.name)}"), f"{one.in_work:,}", f"{one.rate:,.1f}", f"{one.idle:,.1f} s")
    yield made if found.consumers else Text("  no worker has joined")


# ---- metrics


def serve_queue_metrics(settings: SettingsTree, port: int) -> int:
    """/metrics of the queues alone, with or without workers, until SIGTERM or Ctrl-C. 0. Raises ConfigError."""
    http = settings.http.model_copy(update={"port": port})
    with logs.unstoppable(settings.log), suppress(KeyboardInterrupt):
        asyncio.run(_serve(settings, http))
    return 0


async def _serve(settings: SettingsTree, http: HttpSettings) -> None:
    telemetry = Telemetry.of(settings)
    registry, status, queues = telemetry.metrics.registry, telemetry.status, queues_of(settings)
    registry.register(StatusCollector(status))
    status.warm()  # there is no model to wait for
    telemetry.outages.up("start")
    stop = asyncio.Event()
    for name in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    with connect(settings.redis) as client:
        health = telemetry.outages.of("monitor")
        monitor = Monitor(client, queues, QueueMetrics(registry), health, labels=queues[0].labels)
        async with serve(make_app(registry, status), http) as port:
            with suppress(OSError):  # the reader of the line has gone, or its disk is full
                print(f"metrics of {len(queues)} queues: {link(http.host, port)}/metrics", flush=True)
            with in_thread(monitor.run, "monitor"):
                await stop.wait()
