"""The probes and /metrics over a real socket."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from coatstream.errors import ConfigError, DeadReason
from coatstream.frames.model import ModelInfo
from coatstream.settings.model import HttpSettings
from coatstream.telemetry.ledger import DropReason, Ledger
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.status import Status
from coatstream.web.app import make_app
from coatstream.web.server import serve
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class Fixture:
    def __init__(self) -> None:
        self.status = Status(stall_after=60)
        self.ledger = Ledger(["cam"])
        self.metrics = Metrics(CollectorRegistry())
        self.metrics.expose(self.ledger, self.status)
        self.app = make_app(self.metrics.registry, self.status)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with serve(self.app, HttpSettings(port=0)) as port, httpx.AsyncClient() as http:
            return await http.get(f"http://127.0.0.1:{port}{path}", headers=headers)


async def test_readyz_says_503_and_why_until_the_worker_is_ready() -> None:
    fixture = Fixture()

    before = await fixture.get("/readyz")
    fixture.status.warm()
    fixture.status.redis_up("start")
    after = await fixture.get("/readyz")

    assert (before.status_code, before.json()["ready"]) == (503, False)
    assert "the model is not warm yet" in before.json()["because"]
    assert (after.status_code, after.json()) == (200, {"ready": True, "because": []})


async def test_healthz_does_not_ask_for_redis() -> None:
    fixture = Fixture()
    fixture.status.redis_down("pump", "gone")

    assert (await fixture.get("/healthz")).status_code == 200


async def test_metrics_hold_a_ledger_that_balances() -> None:
    fixture = Fixture()
    for _ in range(5):
        fixture.ledger.received("cam")
    fixture.ledger.published("cam")
    fixture.ledger.dropped("cam", DropReason.REPLACED)
    fixture.ledger.dead("cam", DeadReason.MODEL_ERROR)

    samples = _samples((await fixture.get("/metrics")).text)

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted({"source": "cam", **labels}.items()))]

    received = value("coatstream_frames_received_total")
    settled = (
        value("coatstream_frames_published_total")
        + value("coatstream_frames_dropped_total", reason="replaced")
        + value("coatstream_frames_dead_total", reason="model_error")
    )
    assert (received, value("coatstream_frames_in_flight")) == (5, 2)
    assert received == settled + 2


async def test_openmetrics_is_given_to_who_asks_for_it_and_parses() -> None:
    fixture = Fixture()
    fixture.metrics.model(ModelInfo("coat_lite_mini.in1k", "random", "eager", "fp32", "cpu", 512))

    response = await fixture.get("/metrics", accept="application/openmetrics-text; version=1.0.0")

    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(response.text)}  # type: ignore[no-untyped-call]
    (sample,) = families["coatstream_model"].samples
    assert sample.labels["weights"] == "random"


async def test_a_scrape_does_not_hold_up_the_loop() -> None:
    """With some hundred cameras it takes long, and batches are made on the loop."""
    fixture, loop = Fixture(), asyncio.get_running_loop()
    turned = threading.Event()

    class Slow(Collector):
        def describe(self) -> Iterator[Metric]:
            yield from ()

        def collect(self) -> Iterator[Metric]:
            loop.call_soon_threadsafe(turned.set)
            yield GaugeMetricFamily("coatstream_turned", "Whether the loop did something.", value=turned.wait(5))

    fixture.metrics.registry.register(Slow())

    assert "coatstream_turned 1.0" in (await fixture.get("/metrics")).text


async def test_every_metric_has_our_prefix_and_a_help_text() -> None:
    response = await Fixture().get("/metrics")

    for family in text_string_to_metric_families(response.text):
        assert family.name.startswith("coatstream_")
        assert family.documentation.endswith(".")


async def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=f"http.port {port} cannot be listened on"):
            async with asyncio.timeout(5), serve(Fixture().app, HttpSettings(port=port)):
                pass


def _samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
