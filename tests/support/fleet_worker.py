"""One worker's fleet in a process of its own, with cameras that are only pretended: what it may publish goes to stdout.

A line each 20 ms: {"at": monotonic seconds, which all processes share, "publishes": {camera: number}}. Lines on stdin:
`retire`, `leave`.
"""

import json
import sys
import threading
import time

import structlog
from coatstream.broker.connection import connect
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.cameras.fleet.access import brisk
from coatstream.cameras.fleet.assignments import Departure
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.fleet.member import Fleet
from coatstream.settings.model import CameraSettings, SettingsTree
from coatstream.telemetry.telemetry import Telemetry

OPENING = 0.4  # seconds until a camera's first picture


class Cameras:
    """Readers that have a picture some time after they were started, and then always."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[str, CameraLease] = {}

    def start(self, camera: CameraSettings, lease: CameraLease) -> None:
        with self._lock:
            self._leases[camera.name] = lease
        threading.Timer(OPENING, lease.arrived).start()

    def stop(self, name: str, departure: Departure) -> None:
        with self._lock:
            del self._leases[name]

    def all_ended(self) -> None:
        """There are no files."""

    def publishes(self) -> dict[str, int]:
        """What it would publish now: fences by camera."""
        with self._lock:
            leases = dict(self._leases)
        return {name: fence for name, lease in leases.items() if lease.warm and (fence := lease.fence) is not None}


def main(worker: str, document: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = SettingsTree.model_validate_json(document)
    cameras, stop = Cameras(), threading.Event()
    client = connect(brisk(settings.redis, settings.fleet.lease))
    fleet = Fleet(client, fleet_keys(settings), settings, Telemetry.of(settings, worker), cameras)
    fleet.begin()
    threading.Thread(target=fleet.run, args=(stop,), daemon=True).start()
    threading.Thread(target=_obey, args=(fleet, stop), daemon=True).start()
    while not stop.is_set():
        at = time.monotonic()  # before: a process that is frozen here says nothing late
        print(json.dumps({"at": at, "publishes": cameras.publishes()}), flush=True)
        stop.wait(0.02)


def _obey(fleet: Fleet, stop: threading.Event) -> None:
    for line in sys.stdin:
        match line.strip():
            case "retire":
                fleet.retire()
            case "leave":
                fleet.leave()
                stop.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
