"""Cameras: list, add, remove, pause, resume."""

from typing import Annotated, Any

import structlog
from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from coatstream.broker.connection import Client
from coatstream.cameras.fleet.changes import FleetChanges, camera_of
from coatstream.errors import ConfigError
from coatstream.web.api.backend import Backend, Desk, Limit, absent
from coatstream.web.snapshot import ShownCamera

router = APIRouter(tags=["cameras"])

Name = Annotated[str, Field(min_length=1, max_length=128)]


class CameraPage(BaseModel):
    """Some cameras by name, and where the next page begins; null: there are no more."""

    items: list[ShownCamera]
    next: str | None


class NewCamera(BaseModel):
    """A camera for all workers to read. The other settings are those of the settings file (docs/settings.md)."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    url: Annotated[SecretStr, Field(min_length=1, max_length=2048)]
    username: Annotated[str, Field(max_length=256)] | None = None
    password: Annotated[SecretStr, Field(max_length=1024)] | None = None
    fps: Annotated[float, Field(ge=0, le=1000)] | None = None
    priority: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    replace: bool = Field(False, description="change the camera of this name, if there is one")


class CameraName(BaseModel):
    """Which camera. Names may hold any character, so they stand in the body."""

    model_config = ConfigDict(extra="forbid")

    name: Name


class Done(BaseModel):
    """It is done."""

    done: str


@router.get("/cameras", summary="All cameras of the fleet, by name")
async def list_cameras(
    desk: Desk,
    limit: Limit = 100,
    after: Annotated[str | None, Query(max_length=128, description="`next` of the page before")] = None,
) -> CameraPage:
    found = await desk.calls.call(lambda client: desk.snapshots(client).read().cameras)
    rest = [camera for camera in found if after is None or camera.name > after]
    page = rest[:limit]
    return CameraPage(items=page, next=page[-1].name if len(rest) > limit else None)


@router.post("/cameras", status_code=201, summary="Let the workers read another camera")
async def add_camera(desk: Desk, camera: NewCamera) -> Done:
    def add(client: Client) -> None:
        _changes(desk, client).add(camera_of(_values(camera)), replace=camera.replace)

    try:
        await desk.calls.call(add)
    except ConfigError as fault:
        raise HTTPException(409, str(fault).replace("give --replace", "send replace: true")) from None
    return Done(done=f"added {camera.name}")


@router.delete("/cameras", summary="Remove a camera that was added")
async def remove_camera(desk: Desk, name: Annotated[str, Query(min_length=1, max_length=128)]) -> Done:
    if not await desk.calls.call(lambda client: _changes(desk, client).remove(name)):
        raise absent("camera of this name in Redis")
    return Done(done=f"removed {name}")


@router.post("/cameras/pause", summary="Let no worker read a camera until it is resumed")
async def pause_camera(desk: Desk, camera: CameraName) -> Done:
    if not await desk.calls.call(lambda client: _changes(desk, client).pause(camera.name)):
        raise absent("camera of this name")
    return Done(done=f"paused {camera.name}")


@router.post("/cameras/resume", summary="Let the workers read a paused camera again")
async def resume_camera(desk: Desk, camera: CameraName) -> Done:
    if not await desk.calls.call(lambda client: _changes(desk, client).resume(camera.name)):
        raise absent("paused camera of this name")
    return Done(done=f"resumed {camera.name}")


def _changes(desk: Backend, client: Client) -> FleetChanges:
    log = structlog.get_logger("web")
    return FleetChanges(client, desk.settings, warn=log.warning)


def _values(camera: NewCamera) -> dict[str, Any]:
    values = camera.model_dump(exclude={"replace"}, exclude_none=True)
    secrets = {"url": camera.url, "password": camera.password}
    return values | {key: secret.get_secret_value() for key, secret in secrets.items() if secret is not None}
