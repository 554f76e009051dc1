"""The probes and /metrics over a real socket."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from coatstream.errors import ConfigError, DeadReason
from coatstream.frames.model import ModelInfo
from coatstream.pipeline.metrics import EngineMetrics
from coatstream.settings.loading import load
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
from structlog.testing import capture_logs


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


async def test_startedz_is_503_until_the_model_is_warm_whatever_redis_does() -> None:
    fixture = Fixture()

    before = await fixture.get("/startedz")
    fixture.status.warm()
    after = await fixture.get("/startedz")

    assert (before.status_code, before.json()) == (503, {"started": False, "because": ["the model is not warm yet"]})
    assert (after.status_code, after.json()) == (200, {"started": True, "because": []})
    assert (await fixture.get("/readyz")).status_code == 503


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
    EngineMetrics(fixture.metrics.registry).model(
        ModelInfo("coat_lite_mini.in1k", "random", "eager", "fp32", "cpu", 512)
    )

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


async def test_a_port_that_the_user_chose_and_that_is_taken_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=f"http.port {port} cannot be listened on"):
            async with serve(Fixture().app, HttpSettings(port=port)):
                pass


@pytest.mark.parametrize("origin", ["environment", "command line", "file"])
async def test_the_default_port_is_chosen_too_where_somebody_wrote_it_down(origin: str, tmp_path: Path) -> None:
    port = HttpSettings().port
    (tmp_path / "settings.yaml").write_text(f"http: {{port: {port}}}" if origin == "file" else "")

    http = load(
        config=tmp_path / "settings.yaml",
        environ={"COATSTREAM_HTTP__PORT": str(port)} if origin == "environment" else {},
        overrides={"http.port": port} if origin == "command line" else {},
        secrets_dir=None,
    ).http

    with taken_from(port), pytest.raises(ConfigError, match=f"http.port {port} cannot be listened on"):
        async with serve(Fixture().app, http):
            pass


async def test_where_the_user_chose_no_port_the_next_free_one_is_used_and_logged() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, capture_logs() as log:
        wanted = taken.getsockname()[1]
        settings = HttpSettings.model_construct(_fields_set=set(), port=wanted)  # as if it were the default

        async with serve(Fixture().app, settings) as port:
            pass

    assert wanted < port < wanted + 100
    assert [(line["wanted"], line["used"]) for line in log if "http.port is taken" in line["event"]] == [(wanted, port)]


@pytest.mark.parametrize("settings", [HttpSettings(), HttpSettings(port=0)])
async def test_a_worker_that_replaces_another_listens_where_that_one_did(settings: HttpSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        before = other.getsockname()[1]

        async with serve(Fixture().app, settings, port_before=before) as elsewhere:
            pass
    async with serve(Fixture().app, settings, port_before=before) as port:
        pass

    assert (port, elsewhere == before) == (before, False)


@contextmanager
def taken_from(port: int) -> Iterator[None]:
    """The port is taken, by this test or by another program of this machine."""
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def _samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
