"""What workers report of themselves: written, read while it is fresh, tidied up, and never in the way."""

import threading
import time

from coatstream.broker.connection import Client, connect
from coatstream.results.reports import FORGOTTEN, FRESH, Reporter, WorkerReport, parse_report, read_reports
from coatstream.settings.model import RedisSettings
from structlog.testing import capture_logs

from tests.support.servers import ON_ONE_SERVER

KEY = "cameras:reports"


def made(worker: str = "a", *, at: float | None = None) -> WorkerReport:
    return WorkerReport(worker=worker, at=time.time() if at is None else at, started_at=0, version="1")


@ON_ONE_SERVER
def test_a_report_is_there_while_its_worker_writes_and_goes_with_it(client: Client) -> None:
    reporter, stop = Reporter(client, KEY, made), threading.Event()
    thread = threading.Thread(target=reporter.run, args=(stop,))

    thread.start()
    deadline = time.monotonic() + 30
    while not (found := read_reports(client, KEY, now=time.time())) and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join(30)

    assert [report.worker for report in found] == ["a"]
    assert read_reports(client, KEY, now=time.time()) == []


@ON_ONE_SERVER
def test_old_reports_are_not_shown_and_later_deleted_by_other_workers(client: Client) -> None:
    now = time.time()
    for worker, age in {"late": FRESH + 1, "vanished": FORGOTTEN + 1, "ahead": -FORGOTTEN - 1}.items():
        client.hset(KEY, worker, made(worker, at=now - age).model_dump_json())
    client.hset(KEY, "strange", b"\xff{")

    Reporter(client, KEY, made).write()

    assert sorted(client.hkeys(KEY)) == [b"a", b"late"]
    assert [report.worker for report in read_reports(client, KEY, now=now)] == ["a"]


def test_what_no_worker_wrote_is_no_report() -> None:
    assert [parse_report(text) for text in (b"", b"{}", b"[" * 5000, b'{"worker": 1}', b"\xff")] == [None] * 5


def test_while_redis_is_away_one_line_tells_so_and_no_error_comes_out() -> None:
    with connect(RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})) as away, capture_logs() as log:
        reporter = Reporter(away, KEY, made)
        for _ in range(3):
            reporter.write()

    assert len(log) == 1
