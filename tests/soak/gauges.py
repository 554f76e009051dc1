"""What is looked at every few seconds, and the lines that must be flat in the end."""

import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import httpx
import numpy as np
from coatstream.broker.connection import Client
from coatstream.broker.keys import Queue
from coatstream.queue.audit import audit
from redis.exceptions import RedisError

from tests.faults.findings import SECONDS, Findings
from tests.support import processes
from tests.support.workers import Worker

QUEUE: Final = Queue("frames", "coatstream", "frames:dead", "labels")
MEMORY_GROWTH: Final = 0.05  # MB a minute, after the first quarter of an hour at least
SHORT: Final = 1800.0  # seconds; of less, memory tells nothing but a coarse leak


@dataclass(slots=True)
class Gauges:
    """Samples of two workers and a server since the start."""

    workers: list[Worker]
    client: Client
    began: float = field(default_factory=time.monotonic)
    memory: list[tuple[float, float]] = field(default_factory=list)  # minutes, MB of the larger worker
    scrapes: int = 0
    unbalanced: list[str] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)  # of /metrics
    seconds: list[float] = field(default_factory=list)
    zombies: int = 0
    ages: list[float] = field(default_factory=list)  # seconds, of labels of cameras

    def look(self) -> None:
        """Once. A worker or a server that is away just now is no finding."""
        minutes = (time.monotonic() - self.began) / 60
        self.memory.append((minutes, max(map(self._megabytes, self.workers))))
        for worker in self.workers:
            began = time.monotonic()
            try:
                text, metrics = worker.get("/metrics").text, worker.metrics()
            except (httpx.HTTPError, ValueError, OSError):
                continue
            self.scrapes += 1
            self.bytes.append(len(text))
            self.seconds.append((time.monotonic() - began) / 2)
            self.unbalanced += _unbalanced(metrics)
        self._look_at_ages()

    def _megabytes(self, worker: Worker) -> float:
        own = processes.children(worker.process.pid)
        self.zombies = max(self.zombies, sum(processes.ended(pid) for pid in processes.descendants(worker.process.pid)))
        return max((processes.resident_bytes(pid) / 2**20 for pid in own), default=0.0)

    def _look_at_ages(self) -> None:
        try:
            newest = self.client.xrevrange("labels", count=50)
        except (RedisError, OSError):
            return
        ages = [float(f[b"published_at"]) - float(f[b"captured_at"]) for _, f in newest if b"entry_id" not in f]
        self.ages += [median(ages)] if ages else []

    def judge(self, findings: Findings, cameras: list[str]) -> None:
        """After the producers have ended, the queue is empty and the workers have drained."""
        client, minutes = self.client, (time.monotonic() - self.began) / 60
        labels = client.xrange("labels")
        findings.note("labels", len(labels))
        entries = Counter(fields[b"entry_id"] for _, fields in labels if b"entry_id" in fields)
        findings.exactly("doubled", sum(count - 1 for count in entries.values()), 0)
        books = audit(client, QUEUE)
        findings.note("queue entries", books.added)
        findings.exactly("unaccounted", books.unaccounted, 0)
        findings.exactly("unfinished", client.xlen("frames"), 0)
        findings.at_least("scrapes", self.scrapes, 5)
        findings.exactly("unbalanced scrapes", len(self.unbalanced), 0)
        findings.exactly("orphan tags", sum(client.hlen(f"tags:{camera}") for camera in cameras), 0)
        findings.at_most("consumers", len(client.xinfo_consumers("frames", "coatstream")), 3)
        findings.at_most("zombies", self.zombies, 1)
        findings.at_most("fences", client.hlen("cameras:fences"), len(cameras))
        findings.at_most("scripts", client.info("memory")["number_of_cached_scripts"], 40)
        findings.at_most("/metrics", max(self.bytes) / 1000, 120, " kB")
        findings.at_most("/metrics takes, median", median(self.seconds), 0.1, SECONDS)
        quarter = max(1, len(self.ages) // 4)
        creep = median(self.ages[-quarter:]) - median(self.ages[:quarter])
        findings.at_most("age creep", creep, 0.25 * findings.slack, " of a second")
        self._judge_memory(findings, minutes)

    def _judge_memory(self, findings: Findings, minutes: float) -> None:
        """The slope of the upper edge: a worker that was just started again is small."""
        settled = [(when, much) for when, much in self.memory if when > min(30, minutes / 2) and much]
        findings.note("worker memory", f"{max((much for _, much in settled), default=0):.0f} MB")
        if len(settled) < 4:
            return
        whens, muches = np.array(settled).T
        slope = float(np.polyfit(whens, np.maximum.accumulate(muches), 1)[0])
        findings.at_most("memory grows", slope, MEMORY_GROWTH if minutes * 60 >= 2 * SHORT else 5.0, " MB a minute")


def _unbalanced(metrics: dict[tuple[str, frozenset[tuple[str, str]]], Any]) -> list[str]:
    accounts: dict[str, Counter[str]] = {}
    for (name, labels), value in metrics.items():
        if name.startswith("coatstream_frames_"):
            accounts.setdefault(dict(labels)["source"], Counter())[name.split("_")[2]] += int(value)
    return [
        f"{source}: {dict(account)}"
        for source, account in accounts.items()
        if account["received"] != account["published"] + account["dropped"] + account["dead"] + account["in"]
    ]
