"""The cameras that this worker reads now, by name.

Starts and stops them as the fleet wants; decides nothing about which worker reads what. `start`, `stop` and `all_ended`
are called by the fleet's thread, the rest on the loop.
"""

from coatstream.cameras.camera import ActiveCamera, CameraContext
from coatstream.cameras.fleet.assignments import Departure
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.frames.frame import Prediction
from coatstream.pipeline.inference import FramePolicy
from coatstream.pipeline.intake import Intake
from coatstream.settings.model import CameraSettings


class ActiveCameras:
    """The fleet's `CameraReaders`.

    policies  how the inference shall treat the frames of each camera; they come and go
    """

    def __init__(self, cameras: dict[str, ActiveCamera], context: CameraContext, intake: Intake) -> None:
        """`cameras`: those that are read, for all to see; changed here only, on the loop. Raises ConfigError for tags
        that this model cannot have.
        """
        self.policies: dict[str, FramePolicy] = {}
        self._cameras = cameras
        self._context = context
        self._intake = intake
        self._ledger, self._status = context.telemetry.ledger, context.telemetry.status
        self._ending: dict[str, ActiveCamera] = {}  # read to their end, and perhaps not all labelled yet
        self._loop = context.loop
        for camera in context.settings.cameras:
            context.tags_of(camera)

    def start(self, camera: CameraSettings, lease: CameraLease) -> None:
        """Read a camera from now on. Raises ConfigError for what cannot be a camera, or has tags that cannot be."""
        self._loop.call_soon_threadsafe(self._enter, ActiveCamera(camera, lease, self._context))

    def stop(self, name: str, departure: Departure) -> None:
        """Read it no longer. Where no other worker will either, its tags end."""
        self._loop.call_soon_threadsafe(self._leave, name, departure)

    def all_ended(self) -> None:
        """No camera will ever deliver again: the intake may have finished."""
        self._loop.call_soon_threadsafe(self._intake.look)

    def published(self, prediction: Prediction) -> None:
        """A label was published."""
        camera = self._cameras.get(prediction.source) or self._ending.get(prediction.source)
        if camera is not None:
            camera.events.published(prediction, ended=camera.ended)

    def fences(self) -> dict[str, int]:
        """The fence under which each camera that has not ended was last published."""
        return {
            name: fence
            for name, camera in self._cameras.items()
            if not camera.ended and (fence := camera.events.published_under) is not None
        }

    def tick(self) -> None:
        """Once a second: what time alone changes."""
        redis_is_up, states = self._status.redis_is_up(), self._status.sources()
        for name, camera in self._cameras.items():
            camera.events.tick(states.get(name), redis_is_up=redis_is_up)
        self.end_tags_of_ended()

    def end_tags_of_ended(self) -> None:
        """A camera that was read to its end has no tags any more once its last label is out."""
        for name, camera in [*self._cameras.items(), *self._ending.items()]:
            if camera.ended and not self._ledger.in_flight(name):
                camera.events.end_tags("ended")
                if self._ending.pop(name, None) is not None:
                    camera.events.release()

    def _enter(self, camera: ActiveCamera) -> None:
        name = camera.name
        if name in self._cameras:  # a bug of the fleet would otherwise end the worker
            self._leave(name, "moved")
        if (earlier := self._ending.pop(name, None)) is not None:
            earlier.events.end_tags("ended")
        self._cameras[name] = camera
        self._ledger.name(name)
        self.policies[name] = FramePolicy(camera.settings.max_age, camera.gates)
        self._intake.add(camera.process, weight=camera.settings.priority, observer=camera)

    def _leave(self, name: str, departure: Departure) -> None:
        camera = self._cameras.pop(name, None)
        if camera is None:
            return
        camera.active = False
        self._intake.remove(name)
        self.policies.pop(name, None)
        if not camera.ended:
            self._status.forget(name)
        if departure == "removed":
            self._ledger.gone(name)
        if departure == "moved" and camera.ended:
            self._ending[name] = camera
            return
        if departure != "moved":
            camera.events.end(departure)
        camera.events.release()
