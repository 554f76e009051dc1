"""The newest pictures of the cameras that this worker reads."""

from collections.abc import Collection, Iterable, Mapping

from coatstream.cameras.camera import ActiveCamera
from coatstream.frames.still import Still


class CameraPreviews:
    """A `PreviewSource`. `always`: pictures are kept for events in any case, wished for or not."""

    shared = False

    def __init__(self, cameras: Mapping[str, ActiveCamera], *, always: bool) -> None:
        self._cameras = cameras
        self._always = always

    def names(self) -> Iterable[str]:
        return list(self._cameras)

    def wished(self, names: Collection[str]) -> None:
        for name, camera in list(self._cameras.items()):
            if camera.shelf is not None and not self._always:
                camera.shelf.want(name in names)

    def exact(self, name: str, frame_id: str) -> Still | None:
        """The picture of exactly this frame, where it is still there."""
        camera = self._cameras.get(name)
        return None if camera is None or camera.shelf is None else camera.shelf.exact(frame_id)

    def newest(self, name: str) -> Still | None:
        camera = self._cameras.get(name)
        return None if camera is None or camera.shelf is None else camera.shelf.newest()
