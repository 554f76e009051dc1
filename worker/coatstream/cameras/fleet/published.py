"""The cameras of all live workers' settings, as these have published them: names and addresses, no secret.

So a command knows them without the workers' settings file.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import FleetKeys

_CATALOGUE: Final = b":"  # fields of the members' hash that begin so are catalogues, by their digest
LONGEST: Final = 1000  # characters of an address


@dataclass(frozen=True, slots=True)
class PublishedCamera:
    """One camera of a settings file.

    shared  any worker may read it; else only its own does, `worker`
    fps     frames a second that it asks of a worker, where that is known
    """

    name: str
    url: str
    shared: bool
    worker: str
    fps: float = field(default=0.0, compare=False)


def published_cameras(client: Client, keys: FleetKeys) -> dict[str, PublishedCamera]:
    """Those of live members, by name. Damaged records count as none. Raises RedisUnavailable, RedisRefuses."""
    with calls("the workers' cameras cannot be read", client):
        stored = client.hgetall(keys.members)
        seconds, micros = client.time()
    now = 1000 * seconds + micros / 1000
    found: dict[str, PublishedCamera] = {}
    for worker, text in sorted(stored.items()):
        record = _json(text)
        if worker.startswith(_CATALOGUE) or not isinstance(record, dict) or not _lives(record, now):
            continue
        catalogue = _json(stored.get(_CATALOGUE + str(record.get("catalogue", "")).encode(), b""))
        for camera in _cameras(worker.decode("utf-8", "replace"), catalogue, record.get("unshared")):
            found.setdefault(camera.name, camera)
    return found


def _lives(record: Mapping[str, Any], now: float) -> bool:
    beat, lease = record.get("beat"), record.get("lease")
    return isinstance(beat, int | float) and isinstance(lease, int | float) and beat + lease > now


def _cameras(worker: str, catalogue: object, unshared: object) -> Iterator[PublishedCamera]:
    """Of one member: a catalogue's rows are name, digest, priority, rate, cold, from Redis, and from some release on
    the address.
    """
    for row in catalogue if isinstance(catalogue, list) else ():
        if isinstance(row, list) and len(row) >= 6 and isinstance(row[0], str) and not row[5]:
            url, rate = str(row[6])[:LONGEST] if len(row) > 6 else "", row[3]
            fps = float(rate) if isinstance(rate, int | float) else 0.0
            yield PublishedCamera(row[0], url, shared=True, worker=worker, fps=fps)
    for row in unshared if isinstance(unshared, list) else ():
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str):
            yield PublishedCamera(row[0], str(row[1])[:LONGEST], shared=False, worker=worker)


def _json(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
