"""The cameras that were added at run time: reads and checks them, adds, removes, pauses and resumes them.

The hash holds secrets as they are, since every worker needs them: only workers and operators should have the right to
read it. A client that may write there decides what workers open, so an entry is checked like the settings file, and
more strictly. Every method raises RedisUnavailable.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import SecretStr, ValidationError

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.broker.script import Script
from coatstream.errors import ConfigError, redact
from coatstream.settings.model import CameraSettings, SettingsTree

LONGEST: Final = 16_384  # bytes of one camera's JSON
LONGEST_FAULT: Final = 200  # characters

_PRELUDE: Final = ("broker/keys", "cameras/fleet/fleet")
_REGISTRY, _REGISTER = (
    Script("cameras/fleet/registry", after=_PRELUDE),
    Script("cameras/fleet/register", after=_PRELUDE),
)

Accept = Callable[[CameraSettings], None]


@dataclass(frozen=True, slots=True)
class Content:
    """What one reading found.

    version  of all that the workers share; `digest`: of this content
    faults   by camera: why its entry cannot be used, in one line
    beyond   entries over the bound, which were not read
    """

    version: bytes = b""
    digest: bytes = b""
    cameras: Mapping[str, CameraSettings] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    faults: Mapping[str, str] = field(default_factory=dict)
    beyond: int = 0


class Registry:
    """`accept` raises ConfigError for a camera that must not come from Redis."""

    def __init__(self, client: Client, keys: FleetKeys, *, most: int, accept: Accept = lambda camera: None) -> None:
        self._client = client
        self._keys = keys
        self._most = most
        self._accept = accept

    def read(self, known: Content | None = None) -> Content:
        """What the registry holds now; where nothing is new, `known` with the present version."""
        keys = self._keys
        with calls("the cameras in Redis cannot be read", self._client):
            reply = _REGISTRY(
                self._client,
                keys=[keys.registry, keys.paused, keys.version],
                args=[self._most, LONGEST, known.digest if known else b""],
            )
        version, digest, *rest = reply
        if not rest and known is not None:
            return Content(version, digest, known.cameras, known.paused, known.faults, known.beyond)
        return self._content(version, digest, *rest)

    def add(self, camera: CameraSettings, *, replace: bool = False) -> bool:
        """False: the registry is full, or has a camera of that name and `replace` is false. Raises ConfigError."""
        self._accept(camera)
        if fault := _misnamed(camera.name):
            raise ConfigError(f"camera {camera.name!r}: {fault}")
        text = document(camera)
        if not _is_text(text):
            raise ConfigError(f"camera {camera.name!r}: its settings are not text in UTF-8")
        if len(text.encode()) > LONGEST:
            raise ConfigError(f"camera {camera.name!r}: its settings are larger than {LONGEST} bytes")
        return self._change("replace" if replace else "add", camera.name, text) == 1

    def remove(self, name: str) -> bool:
        """False: there is none."""
        return self._change("remove", name) == 1

    def pause(self, name: str) -> bool:
        """No worker reads it from now on. False: it was paused already."""
        return self._change("pause", name) == 1

    def resume(self, name: str) -> bool:
        """False: it was not paused."""
        return self._change("resume", name) == 1

    def _change(self, what: Literal["add", "replace", "remove", "pause", "resume"], name: str, text: str = "") -> int:
        keys = self._keys
        if not _is_text(name):  # bytes of the command line: no camera has that name
            return 0
        with calls("the cameras in Redis cannot be changed", self._client):
            return int(
                _REGISTER(
                    self._client,
                    keys=[keys.registry, keys.paused, keys.version, keys.states],
                    args=[what, name, text, self._most],
                )
            )

    def _content(
        self,
        version: bytes,
        digest: bytes,
        found: list[bytes],
        paused: list[bytes],
        large: list[bytes],
        beyond: int,
    ) -> Content:
        cameras: dict[str, CameraSettings] = {}
        faults = {_shown(name): f"its entry is larger than {LONGEST} bytes" for name in large}
        for raw, text in zip(found[::2], found[1::2], strict=True):
            try:
                camera = self._camera(raw, text)
            except ConfigError as fault:
                faults[_shown(raw)] = str(fault)
            else:
                cameras[camera.name] = camera
        idle = frozenset(name.decode("utf-8", "replace") for name in paused)
        return Content(version, digest, cameras, idle, faults, int(beyond))

    def _camera(self, raw: bytes, text: bytes) -> CameraSettings:
        """Raises ConfigError: one line without anything that may be secret."""
        try:
            name = raw.decode()
            camera = CameraSettings.model_validate(_mapping(text) | {"name": name})
        except UnicodeDecodeError:
            raise ConfigError("its name is not text in UTF-8") from None
        except ValidationError as failure:
            raise ConfigError(_first_fault(failure)) from None
        if fault := _misnamed(name):
            raise ConfigError(fault)
        if not camera.shared:
            raise ConfigError("a camera from Redis is shared by all workers: take `shared` out")
        self._accept(camera)
        return camera


def document(camera: CameraSettings) -> str:
    """A camera's settings as JSON, without defaults, with its secrets."""
    values = camera.model_dump(mode="json", exclude_defaults=True)
    secrets = {"url": camera.url, "password": camera.password}
    values |= {key: secret.get_secret_value() for key, secret in secrets.items() if secret is not None}
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _mapping(text: bytes) -> dict[str, object]:
    try:
        values = json.loads(text)
        well = _is_text(json.dumps(values, ensure_ascii=False))
    except (ValueError, RecursionError):
        raise ConfigError("its entry is not JSON") from None
    if not well:
        raise ConfigError("its entry is not text")
    if not isinstance(values, dict):
        raise ConfigError("its entry is not a JSON object")
    return values


def _is_text(text: str) -> bool:
    """Half a character (a lone surrogate) can be written neither to Redis nor to a terminal."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _misnamed(name: str) -> str | None:
    """Why this name cannot be used: the settings file would refuse it too, or a person could not see it."""
    try:
        SettingsTree(cameras=(CameraSettings(name=name, url=SecretStr("0")),))
    except ValidationError as failure:
        return _first_fault(failure)
    return None if name.isprintable() else "its name holds characters that cannot be printed"


def _first_fault(failure: ValidationError) -> str:
    error = failure.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, error["loc"]))
    more = failure.error_count() - 1
    return redact(f"{where}: {error['msg']}{f' (and {more} more)' if more else ''}")[:LONGEST_FAULT]


def _shown(name: bytes) -> str:
    return "".join(_visible(name.decode("utf-8", "replace")))[:128]


def _visible(text: str) -> Iterator[str]:
    return (char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
