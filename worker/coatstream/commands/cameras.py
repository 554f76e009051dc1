"""`coatstream cameras list|add|remove|pause|resume`: the cameras that all workers share, changed without a restart."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from coatstream.broker.connection import Client, connect
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.preflight import check_server
from coatstream.cameras.fleet.changes import FleetChanges, camera_of
from coatstream.cameras.fleet.overview import CameraRow, FleetOverview
from coatstream.commands.terminal import complain, date_and_time, print_json, print_rows, shown, table
from coatstream.errors import REDIS_TROUBLE, ConfigError
from coatstream.results.reports import read_reports
from coatstream.settings.model import CameraSettings, SettingsTree
from coatstream.web.snapshot import server_time

COLUMNS: Final = ("camera", "url", "from", "state", "reason", "since", "worker", "fence", "tags")
LONGEST_PASSWORD: Final = 4096  # characters


def list_cameras(settings: SettingsTree, *, as_json: bool) -> int:
    """A table, or one JSON object a line. 1 if an entry in Redis is of no use, else 0."""
    with _connected(settings) as client:
        view, gates = FleetOverview(client, settings).read(), _gates(client, settings)
    if as_json:
        for row in view.rows:
            print_json(_document(row, gates.get(row.camera)))
    else:
        cells = (_cells(row, gates.get(row.camera)) for row in view.rows)
        print_rows(table(*COLUMNS, right=("fence",)), cells, empty="no cameras")
    for name, fault in view.faults.items():
        complain(f"camera {shown(name)} in Redis is left out: {shown(fault)}")
    if view.beyond:
        complain(f"{view.beyond} more cameras are in Redis than fleet.max_cameras")
    return int(bool(view.faults or view.beyond))


def _gates(client: Client, settings: SettingsTree) -> dict[str, str]:
    """Why change gates save nothing, as workers report it. A user without the right to read reports sees none of it."""
    try:
        reports = read_reports(client, fleet_keys(settings).reports, now=server_time(client))
    except REDIS_TROUBLE:
        return {}
    return {name: one.gate for report in reports for name, one in report.cameras.items() if one.gate}


def add_camera(
    settings: SettingsTree,
    name: str,
    url: str,
    *,
    replace: bool = False,
    password_file: Path | None = None,
    password_stdin: bool = False,
    **options: Any,
) -> int:
    """Workers may read it from now on. `options` are settings of a camera, None where they were not given. 0."""
    password = _password(password_file, stdin=password_stdin)
    values = {"name": name, "url": url, **{key: value for key, value in options.items() if value is not None}}
    camera = _validated(values if password is None else values | {"password": password})
    with _changing(settings) as fleet:
        fleet.add(camera, replace=replace)
    return _told(True, f"added {shown(name)}", "")


def remove_camera(settings: SettingsTree, name: str) -> int:
    """Delete it from Redis; its worker stops. 1 if there is none of that name, else 0."""
    with _changing(settings) as fleet:
        removed = fleet.remove(name)
    return _told(removed, f"removed {shown(name)}", f"there is no camera {shown(name)} in Redis")


def pause_camera(settings: SettingsTree, name: str) -> int:
    """No worker reads it until it is resumed. 1 if there is none of that name, else 0."""
    with _changing(settings) as fleet:
        known = fleet.pause(name)
    return _told(known, f"paused {shown(name)}", f"there is no camera {shown(name)}")


def resume_camera(settings: SettingsTree, name: str) -> int:
    """1 if it was not paused, else 0."""
    with _changing(settings) as fleet:
        resumed = fleet.resume(name)
    return _told(resumed, f"resumed {shown(name)}", f"the camera {shown(name)} is not paused")


@contextmanager
def _connected(settings: SettingsTree) -> Iterator[Client]:
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        yield client


@contextmanager
def _changing(settings: SettingsTree) -> Iterator[FleetChanges]:
    with _connected(settings) as client:
        yield FleetChanges(client, settings, warn=complain)


def _told(well: bool, done: str, fault: str) -> int:
    if well:
        print(done, flush=True)
    else:
        complain(fault)
    return int(not well)


def _password(path: Path | None, *, stdin: bool) -> str | None:
    """From a file or stdin, never from the command line: every user of the machine can read that."""
    if path is not None and stdin:
        raise ConfigError("give --password-file or --password-stdin, not both")
    if path is None and not stdin:
        return None
    try:
        text = sys.stdin.read(LONGEST_PASSWORD + 1) if path is None else _first_of(path)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(f"the password cannot be read from {shown(str(path or 'stdin'))}: {why}") from None
    password = text.rstrip("\r\n")
    if not password or len(password) > LONGEST_PASSWORD:
        raise ConfigError("the password is empty" if not password else "the password is too long to be one")
    return password


def _first_of(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(LONGEST_PASSWORD + 1)


def _validated(values: Mapping[str, Any]) -> CameraSettings:
    try:
        return camera_of(values)
    except ConfigError as fault:
        name, _, why = str(fault).partition(": ")
        option = {"name": "NAME", "url": "URL"}.get(name, f"--{name.replace('_', '-')}")
        raise ConfigError(f"{option}: {why}") from None


def _document(row: CameraRow, gate: str | None) -> dict[str, object]:
    return {
        "camera": row.camera,
        "url": row.url,
        "from": row.origin,
        "state": row.state,
        "reason": row.reason or None,
        "message": row.message or None,
        "since": row.since,
        "worker": row.worker or None,
        "fence": row.fence,
        "tags": sorted(row.tags),
        "gate": gate,
    }


def _cells(row: CameraRow, gate: str | None) -> tuple[str, ...]:
    since = "" if row.since is None else date_and_time(row.since)
    fence = "" if row.fence is None else str(row.fence)
    why = row.reason or row.message or (f"reuse saves nothing: {gate}" if gate else "")
    return (
        *(row.camera, row.url, row.origin, row.state, why, since, row.worker, fence),
        ", ".join(sorted(row.tags)),
    )
