"""Which parts of a camera's picture the model sees, by its settings, and how many inputs that makes."""

from typing import Final

from coatstream.frames.views import Region, View
from coatstream.settings.model import CameraSettings

OF_WIDE: Final = 2  # inputs of 16:9, and of 4:3: a camera's shape is not known before it is read


def view_of(camera: CameraSettings) -> View:
    """As the camera's process takes it."""
    if isinstance(camera.view, str):
        return camera.view
    return tuple(Region(region.name, region.at) for region in camera.view)


def regions_of(camera: CameraSettings) -> tuple[str, ...]:
    """Their names, in their order; none where it has no regions."""
    return () if isinstance(camera.view, str) else tuple(region.name for region in camera.view)


def inputs_of(camera: CameraSettings) -> int:
    """Inputs of the model that each of its frames takes, as far as that is known before it is read."""
    if not isinstance(camera.view, str):
        return len(camera.view)
    return 1 if camera.view == "centre" else OF_WIDE
