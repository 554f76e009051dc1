"""Workers as the harness holds them: started, signalled, measured from outside through /metrics and /proc."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from tests.support import processes
from tests.support.workers import PATIENCE, Worker

KEPT_LINES: Final = 50_000


@dataclass(slots=True)
class Replica:
    """One `coatstream run`, the leader of a process group of its own. `log`: (Unix seconds, entry)."""

    process: subprocess.Popen[str]
    log: "deque[tuple[float, dict[str, Any]]]" = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    ready_at: float | None = None
    port: int = 0

    @property
    def pid(self) -> int:
        """Of the process that works. There is no parent above it here, except where a case asks for one."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def running(self) -> bool:
        """Whether it is there and not stopped."""
        return self.alive and processes.state(self.pid) != "T"

    def signal_all(self, name: signal.Signals) -> list[int]:
        """Signal every process of it, as when its machine fails; return their ids."""
        family = processes.descendants(self.pid)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, name)
        for pid in family:  # one that has left the group
            with suppress(ProcessLookupError):
                os.kill(pid, name)
        return family

    def kill(self) -> list[int]:
        """SIGKILL for all of it."""
        family = self.signal_all(signal.SIGKILL)
        self.process.wait(timeout=PATIENCE)
        return family

    def terminate(self) -> None:
        """SIGTERM as Kubernetes sends it: to the first process only."""
        self.process.send_signal(signal.SIGTERM)

    def events(self, name: str, *, since: float = 0.0) -> list[tuple[float, dict[str, Any]]]:
        return [(at, entry) for at, entry in list(self.log) if entry["event"] == name and at >= since]

    def last_words(self) -> str:
        return " / ".join(json.dumps(entry) for _, entry in list(self.log)[-4:])

    def assert_balanced(self) -> None:
        Worker(self.process, port=self.port).assert_balanced()

    def total(self, name: str) -> float:
        """A metric summed over its labels."""
        return Worker(self.process, port=self.port).total(name)

    def read(self) -> None:
        """The thread that keeps its log."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry = _entry(line.strip())
            self.log.append((_when(entry), entry))
            if entry["event"] == "listening":
                self.port = int(entry["http"].rpartition(":")[2])
            if entry["event"] == "ready":
                self.ready_at = time.time()


def _entry(line: str) -> dict[str, Any]:
    with suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict) and "event" in entry:
            return entry
    return {"event": line}


def _when(entry: Mapping[str, Any]) -> float:
    with suppress(KeyError, ValueError):
        return datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00")).timestamp()
    return time.time()


@contextmanager
def running_replica(url: str, settings: Mapping[str, object]) -> Iterator[Replica]:
    """A worker with these settings, starting; `ready_at` is set when it is ready. Killed with all of it on leaving."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
    environment |= {"COATSTREAM_REDIS__URL": url}
    environment |= {f"COATSTREAM_{name.upper()}": _value(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "coatstream", "run"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    replica = Replica(process)
    reader = threading.Thread(target=replica.read, name="log", daemon=True)
    reader.start()
    try:
        yield replica
    finally:
        replica.kill()
        reader.join(5)
        assert process.stderr is not None
        if not reader.is_alive():
            process.stderr.close()


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
