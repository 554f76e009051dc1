"""Which cameras from Redis a worker accepts, and whether Redis lets the worker share any."""

from functools import partial

import structlog

from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.address import Kind, parse
from coatstream.cameras.fleet.leases import Catalogue, Leases
from coatstream.cameras.fleet.registry import Registry
from coatstream.errors import ConfigError, RedisRefuses
from coatstream.settings.model import CameraSettings, FleetSettings, RedisSettings, SettingsTree


def brisk(settings: RedisSettings, lease: float) -> RedisSettings:
    """Settings for the fleet's client: a reply that takes longer than this comes too late for a lease anyway."""
    longest = max(0.25, lease / 8)
    timeouts = {"socket_timeout": settings.socket_timeout, "connect_timeout": settings.connect_timeout}
    return settings.model_copy(update={name: min(seconds, longest) for name, seconds in timeouts.items()})


def reachable(client: Client, keys: FleetKeys, settings: SettingsTree, *, worker: str) -> bool:
    """Whether Redis lets this worker share cameras. False: it does not, and the settings have no shared camera.

    Raises ConfigError where they have one, and RedisUnavailable.
    """
    try:
        registry(client, keys, settings.fleet).read()
        Leases(client, keys, worker=worker, lease=settings.fleet.lease).beat(Catalogue(), mode="gone")
    except RedisRefuses as refusal:
        if any(camera.shared for camera in settings.cameras):
            raise ConfigError(
                f"{refusal}; the keys are {keys.key}*; or write `shared: false` at each camera to read them without"
            ) from refusal
        structlog.get_logger("fleet").warning("no cameras can be added at run time", trouble=str(refusal))
        return False
    return True


def registry(client: Client, keys: FleetKeys, section: FleetSettings) -> Registry:
    """The cameras in Redis, as these settings allow them."""
    return Registry(client, keys, most=section.max_cameras, accept=partial(_accept, local=section.local))


def _accept(camera: CameraSettings, *, local: bool) -> None:
    """Raises ConfigError. A client that writes into Redis must not make this worker read the machine's files, nor send
    them elsewhere as a password.
    """
    kind = parse(camera).kind
    if local:
        return
    if kind is not Kind.NETWORK:
        raise ConfigError(f"camera {camera.name!r}: a camera from Redis may be a {kind} only where fleet.local is true")
    for key in ("password_file", "tls_ca"):
        if getattr(camera, key) is not None:
            raise ConfigError(f"camera {camera.name!r}: {key} names a file, which needs fleet.local from Redis")
