"""All cameras that this worker could read: those of its settings and those from Redis, without those that proved unfit.

Knows which cameras there are, never which worker reads them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from coatstream.cameras.address import Kind, parse, public_url
from coatstream.cameras.capacity import demand
from coatstream.cameras.fleet.leases import Catalogue, CatalogueEntry
from coatstream.cameras.fleet.registry import Content
from coatstream.errors import ConfigError, redact
from coatstream.settings.model import CameraSettings


@dataclass(frozen=True, slots=True)
class _SharedCameras:
    """All shared cameras that this worker can read."""

    cameras: Mapping[str, CameraSettings] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=Catalogue)
    digests: Mapping[str, str] = field(default_factory=dict)


class KnownCameras:
    """Changed by the fleet's thread; any other thread sees the cameras as they were before a change or after it.

    unshared  cameras of the settings that no other worker reads
    content   what Redis held when it was last read; None: it was never read
    faults    entries in Redis that cannot be used: camera -> why
    """

    def __init__(self, settings: Iterable[CameraSettings]) -> None:
        every = list(settings)
        self.unshared: Mapping[str, CameraSettings] = {camera.name: camera for camera in every if not camera.shared}
        self.content: Content | None = None
        self.faults: Mapping[str, str] = {}
        self._shared = {camera.name: camera for camera in every if camera.shared}
        self._unfit: dict[str, CameraSettings] = {}
        self._log = structlog.get_logger("fleet")
        self._known = self._known_from(Content())

    @property
    def cameras(self) -> Mapping[str, CameraSettings]:
        """The shared ones, by name."""
        return self._known.cameras

    @property
    def catalogue(self) -> Catalogue:
        """The same for the server."""
        return self._known.catalogue

    def __len__(self) -> int:
        return len(self._known.cameras) + len(self.unshared)

    def __contains__(self, name: object) -> bool:
        return name in self._known.cameras or name in self.unshared

    @property
    def useless(self) -> int:
        """How many cameras are left out."""
        return len(self.faults) + len(self._unfit)

    @property
    def paused(self) -> frozenset[str]:
        """Known cameras that no worker shall read for now."""
        if self.content is None:
            return frozenset()
        return self.content.paused & (self._known.cameras.keys() | self.unshared.keys())

    @property
    def from_redis(self) -> bool:
        """Whether there is a camera that came from Redis."""
        return bool(self._known.cameras.keys() - self._shared.keys())

    def is_unfit(self, name: str) -> bool:
        return name in self._unfit

    @property
    def digests(self) -> Mapping[str, str]:
        """Of the settings of each shared camera."""
        return self._known.digests

    def learn(self, content: Content) -> bool:
        """This is what Redis holds now. False: nothing is new."""
        news = self.content is None or content.digest != self.content.digest
        self.content = content
        if news:
            self._log_faults(content)
            self._known = self._known_from(content)
        return news

    def leave_out(self, camera: CameraSettings, why: ConfigError) -> None:
        """Ignore it here until its settings change: a lease on it would keep it from workers that can read it."""
        self._log.warning("a camera cannot be read here", camera=camera.name, why=redact(str(why)))
        self._unfit[camera.name] = camera
        self._known = self._known_from(self.content or Content())

    def _known_from(self, content: Content) -> _SharedCameras:
        own = {**self._shared, **self.unshared}
        added = {name: camera for name, camera in content.cameras.items() if name not in own}
        every = {**self._shared, **added}
        self._unfit = {name: camera for name, camera in self._unfit.items() if {**every, **own}.get(name) == camera}
        cameras = {name: camera for name, camera in every.items() if name not in self._unfit}
        digests = {name: digest(camera) for name, camera in cameras.items()}
        entries = [self._entry(camera, digests[name], added=name in added) for name, camera in cameras.items()]
        return _SharedCameras(cameras, Catalogue(tuple(entries)), digests)

    def _entry(self, camera: CameraSettings, text: str, *, added: bool) -> CatalogueEntry:
        url = public_url(camera)
        return CatalogueEntry(camera.name, text, camera.priority, demand(camera), _is_cold(camera), added, url)

    def _log_faults(self, content: Content) -> None:
        """Each once, for as long as it is there."""
        twice = [name for name in content.cameras if name in self._shared or name in self.unshared]
        faults = {**content.faults, **dict.fromkeys(twice, "the settings file has one of this name, which is read")}
        if content.beyond:
            faults["others"] = f"Redis holds {content.beyond} more cameras than fleet.max_cameras allows"
        for name, fault in faults.items():
            if self.faults.get(name) != fault:
                self._log.warning("a camera in Redis is left out", camera=name, why=fault)
        self.faults = faults


def waits(camera: CameraSettings) -> bool:
    """Whether it is a file or a folder that is read as fast as its frames are taken: not at all while none is."""
    try:
        return parse(camera).kind in (Kind.FILE, Kind.FOLDER) and not camera.realtime
    except ConfigError:
        return False


def digest(camera: CameraSettings) -> str:
    """Of all its settings but the secrets: each user who may read the members in Redis sees it."""
    plain = camera.model_copy(update={"url": redact(camera.url.get_secret_value()), "password": None})
    text = repr(plain.model_dump(mode="python", warnings=False))
    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:12]


def _is_cold(camera: CameraSettings) -> bool:
    """A standby would begin a file or a folder's backlog anew, and skip pictures of that uncounted; a device cannot
    be opened twice.
    """
    try:
        kind = parse(camera).kind
    except ConfigError:  # its reader will report it
        return True
    return (
        kind is Kind.DEVICE or (kind is Kind.FILE and not camera.realtime) or (kind is Kind.FOLDER and camera.backlog)
    )
