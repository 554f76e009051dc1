"""A real worker process for tests: started, watched through its log and its metrics, stopped by signals."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 100.0  # seconds; generous: other programs may have taken all cores


@dataclass(frozen=True, slots=True)
class Program:
    """Which worker is started: a Python package, and the folder it is imported from (None: as it is installed)."""

    package: str = "coatstream"
    folder: Path | None = None

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """These variables, with the folder first on Python's path."""
        if self.folder is None:
            return dict(variables)
        path = filter(None, (str(self.folder), variables.get("PYTHONPATH")))
        return {**variables, "PYTHONPATH": os.pathsep.join(path)}


THIS_TREE = Program()


@dataclass
class Worker:
    """One `coatstream run`. `log` fills as the process writes."""

    process: subprocess.Popen[str]
    lines: "queue.Queue[str]" = field(default_factory=queue.Queue)
    log: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next log line with this event. Fails if the process ends or takes too long."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                line = self.lines.get(timeout=0.1)
            except queue.Empty:
                assert self.process.poll() is None, f"the worker ended with {self.process.returncode}: {self.log}"
                continue
            entry = json.loads(line) if line.startswith("{") else {"event": line}
            self.log.append(entry)
            if entry["event"] == event:
                return entry
        raise AssertionError(f"no {event!r} in {self.log}")

    def stop(self, name: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(name)
        return self.process.wait(timeout=PATIENCE)

    @property
    def child(self) -> int:
        """The pid of the process that does the work; `process` is its parent."""
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(self.get("/metrics").text)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def total(self, name: str) -> float:
        """A metric summed over its labels."""
        return sum(value for (metric, _), value in self.metrics().items() if metric == name)

    def assert_balanced(self) -> None:
        """received = published + dropped + dead, and nothing in flight, for every source."""
        ledger: dict[str, dict[str, float]] = {}
        for (metric, labels), value in self.metrics().items():
            if metric.startswith("coatstream_frames_"):
                account = ledger.setdefault(dict(labels)["source"], {})
                account[metric] = account.get(metric, 0.0) + value
        for source, account in ledger.items():
            settled = sum(
                account.get(f"coatstream_frames_{word}_total", 0) for word in ("published", "dropped", "dead")
            )
            assert account["coatstream_frames_received_total"] == settled, (source, account)
            assert account["coatstream_frames_in_flight"] == 0, (source, account)


@contextmanager
def run_worker(
    url: str,
    *,
    environment: Mapping[str, str] | None = None,
    program: Program = THIS_TREE,
    **settings: object,
) -> Iterator[Worker]:
    """`coatstream run` on a server, ready; settings as keywords, `model__engine="noop"`; other variables by name."""
    with starting_worker(url, environment=environment, program=program, **settings) as worker:
        worker.wait_for("ready")
        yield worker


@contextmanager
def starting_worker(
    url: str,
    *,
    environment: Mapping[str, str] | None = None,
    program: Program = THIS_TREE,
    **settings: object,
) -> Iterator[Worker]:
    """The same, as soon as it listens: its model may still be loading."""
    worker = Worker(_process(program, url, settings, environment or {}))
    reader = threading.Thread(target=_read, args=(worker.process, worker.lines), daemon=True)
    reader.start()
    try:
        worker.port = int(worker.wait_for("listening")["http"].rpartition(":")[2])
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.wait(timeout=PATIENCE)
        reader.join(5)
        assert worker.process.stderr is not None
        worker.process.stderr.close()


def _process(
    program: Program, url: str, settings: dict[str, object], variables: Mapping[str, str]
) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
    environment |= {
        **program.environment(variables),
        "COATSTREAM_REDIS__URL": url,
        "COATSTREAM_HTTP__PORT": "0",
        "COATSTREAM_MODEL__ENGINE": "noop",
        "COATSTREAM_LOG__FORMAT": "json",
        **{f"COATSTREAM_{name.upper()}": str(value) for name, value in settings.items()},
    }
    return subprocess.Popen(
        [sys.executable, "-m", program.package, "run"],
        cwd=program.folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def _read(process: subprocess.Popen[str], lines: "queue.Queue[str]") -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.put(line.strip())


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Poll a condition of another process until it holds; that is not a wait of fixed length."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)
