"""`coatstream cameras list|add|remove|pause|resume`: the cameras that all workers share, changed without a restart."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from coatstream.broker.connection import Client, connect
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import FleetKeys, fleet_keys
from coatstream.broker.preflight import check_server
from coatstream.cameras.address import public_url
from coatstream.cameras.fleet.access import registry
from coatstream.cameras.fleet.leases import Holder, holders
from coatstream.cameras.fleet.registry import Content, Registry
from coatstream.cameras.fleet.removal import publish_removal
from coatstream.commands.terminal import complain, date_and_time, print_json, print_rows, shown, table
from coatstream.errors import REDIS_TROUBLE, ConfigError, redact
from coatstream.settings.model import CameraSettings, SettingsTree

COLUMNS: Final = ("camera", "url", "from", "state", "reason", "since", "worker", "fence", "tags")
LONGEST_PASSWORD: Final = 4096  # characters
_LAST_MOMENT: Final = 2.5e11  # Unix seconds; a later one has no date
_STATE_FIELDS: Final = ("state", "reason", "message", "since", "worker")


@dataclass(frozen=True, slots=True)
class _Opened:
    client: Client
    keys: FleetKeys
    registry: Registry


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one camera. Nothing in it is secret."""

    camera: str
    url: str
    origin: str  # settings or redis
    state: str
    reason: str = ""
    message: str = ""
    since: float | None = None
    worker: str = ""
    fence: int | None = None
    tags: tuple[str, ...] = ()


def list_cameras(settings: SettingsTree, *, as_json: bool) -> int:
    """A table, or one JSON object a line. 1 if an entry in Redis is of no use, else 0."""
    with _opened(settings) as opened:
        content = opened.registry.read()
        rows = _rows(opened, settings, content)
    if as_json:
        for row in rows:
            print_json(_document(row))
    else:
        print_rows(table(*COLUMNS, right=("fence",)), map(_cells, rows), empty="no cameras")
    for name, fault in content.faults.items():
        complain(f"camera {shown(name)} in Redis is left out: {shown(fault)}")
    if content.beyond:
        complain(f"{content.beyond} more cameras are in Redis than fleet.max_cameras")
    return int(bool(content.faults or content.beyond))


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
    if any(camera.name == name for camera in settings.cameras):
        raise ConfigError(f"the settings file has a camera {shown(name)} already: give this one another name")
    password = _password(password_file, stdin=password_stdin)
    values = {"name": name, "url": url, **{key: value for key, value in options.items() if value is not None}}
    camera = _validated(values if password is None else values | {"password": password})
    with _opened(settings) as opened:
        if not opened.registry.add(camera, replace=replace):
            raise ConfigError(_why_not(opened.registry.read(), name, settings.fleet.max_cameras))
    print(f"added {shown(name)}", flush=True)
    return 0


def remove_camera(settings: SettingsTree, name: str) -> int:
    """Delete it from Redis; its worker stops. 1 if there is none of that name, else 0."""
    if any(camera.name == name for camera in settings.cameras):
        raise ConfigError(
            f"the camera {shown(name)} is in the settings file, where only you can remove it: pause it instead "
            f"(coatstream cameras pause {shown(name)})"
        )
    with _opened(settings) as opened:
        unread = name not in holders(opened.client, opened.keys)
        removed = opened.registry.remove(name)
        if removed and unread:
            _publish_removal(opened, settings, name)
    return _told(removed, f"removed {shown(name)}", f"there is no camera {shown(name)} in Redis")


def _publish_removal(opened: _Opened, settings: SettingsTree, name: str) -> None:
    """End its tags. The camera stays removed if that fails: the user may lack the rights to the events stream."""
    try:
        publish_removal(opened.client, opened.keys, settings.events, name)
    except REDIS_TROUBLE as trouble:
        complain(f"its tags are not ended: {trouble}")


def pause_camera(settings: SettingsTree, name: str) -> int:
    """No worker reads it until it is resumed. 1 if there is none of that name, else 0."""
    with _opened(settings) as opened:
        known = any(camera.name == name for camera in settings.cameras)
        if not known and name not in opened.registry.read().cameras:
            return _told(False, "", f"there is no camera {shown(name)}")
        opened.registry.pause(name)
    return _told(True, f"paused {shown(name)}", "")


def resume_camera(settings: SettingsTree, name: str) -> int:
    """1 if it was not paused, else 0."""
    with _opened(settings) as opened:
        resumed = opened.registry.resume(name)
    return _told(resumed, f"resumed {shown(name)}", f"the camera {shown(name)} is not paused")


@contextmanager
def _opened(settings: SettingsTree) -> Iterator[_Opened]:
    keys = fleet_keys(settings)
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        yield _Opened(client, keys, registry(client, keys, settings.fleet))


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
        return CameraSettings.model_validate(values)
    except ValidationError as failure:
        error = failure.errors(include_url=False, include_input=False, include_context=False)[0]
        option = "--" + ".".join(map(str, error["loc"])).replace("_", "-")
        option = {"--name": "NAME", "--url": "URL"}.get(option, option)
        raise ConfigError(redact(f"{option}: {error['msg']}")) from None


def _why_not(content: Content, name: str, most: int) -> str:
    if name in content.cameras or name in content.faults:
        return f"there is a camera {shown(name)} already: give --replace to change it"
    return f"there are {most} cameras in Redis already (fleet.max_cameras)"


def _rows(opened: _Opened, settings: SettingsTree, content: Content) -> list[Row]:
    keys, client = opened.keys, opened.client
    owners = holders(client, keys)
    with calls("the states of the cameras cannot be read", client):
        states = client.hgetall(keys.states)
    cameras = {**content.cameras, **{camera.name: camera for camera in settings.cameras}}
    own = {camera.name for camera in settings.cameras}
    return [
        _row(
            camera,
            origin="settings" if name in own else "redis",
            state=_mapping(states.get(name.encode("utf-8", "replace"))),
            holder=owners.get(name),
            paused=name in content.paused,
            tags=_tags(client, keys.tags(name)),
        )
        for name, camera in sorted(cameras.items())
    ]


def _row(
    camera: CameraSettings,
    *,
    origin: str,
    state: Mapping[str, Any],
    holder: Holder | None,
    paused: bool,
    tags: tuple[str, ...],
) -> Row:
    """A stored state counts only while a worker reads the camera, or after the camera's end."""
    stored = {key: state.get(key) for key in _STATE_FIELDS}
    if paused:
        stored = {"state": "paused", "since": stored["since"] if stored["state"] == "paused" else None}
    elif holder is None and camera.shared and stored["state"] != "ended":
        stored = {"state": "unread", "message": "no worker reads it"}
    since = stored.get("since")
    return Row(
        camera.name,
        public_url(camera),
        origin,
        str(stored.get("state") or "unknown"),
        str(stored.get("reason") or ""),
        redact(str(stored.get("message") or "")),
        float(since) if isinstance(since, int | float) and 0 <= since < _LAST_MOMENT else None,
        holder.worker if holder else str(stored.get("worker") or ""),
        holder.fence if holder else None,
        () if paused else tags,
    )


def _mapping(text: bytes | None) -> Mapping[str, Any]:
    """An empty mapping where this is no JSON object: other programs may write there."""
    try:
        found = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _tags(client: Client, key: str) -> tuple[str, ...]:
    with calls("the tags of the cameras cannot be read", client):
        return tuple(sorted(tag.decode("utf-8", "replace") for tag in client.hgetall(key)))


def _document(row: Row) -> dict[str, object]:
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
        "tags": list(row.tags),
    }


def _cells(row: Row) -> tuple[str, ...]:
    since = "" if row.since is None else date_and_time(row.since)
    fence = "" if row.fence is None else str(row.fence)
    return (
        *(row.camera, row.url, row.origin, row.state, row.reason or row.message, since, row.worker, fence),
        ", ".join(row.tags),
    )
