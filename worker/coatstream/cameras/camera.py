"""One camera that this worker reads: its process, its picture's health, its change gate and its events.

Decides neither whether it is read nor by which worker.
"""

import asyncio
import random
import time
from dataclasses import dataclass, replace
from typing import Final

import structlog

from coatstream.cameras.events import CameraEvents
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.health import PictureHealth
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.cameras.process.shelf import PictureShelf
from coatstream.cameras.process.source import CameraProcess
from coatstream.cameras.view import view_of
from coatstream.errors import BadFrame, DownReason, redact
from coatstream.frames.frame import Frame, InputSpec, Label
from coatstream.frames.views import beyond_picture
from coatstream.pipeline.consumed import Consumed
from coatstream.pipeline.gates import WHOLE, CameraGates
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.reuse import ChangeGate
from coatstream.results.events.publisher import EventPublisher
from coatstream.results.events.region_tags import CameraTags, RegionTags
from coatstream.results.events.tag_classes import TagClasses, tag_classes
from coatstream.results.events.tags import Tagger
from coatstream.settings.model import CameraSettings, RegionSettings, ReuseSettings, SettingsTree, TagSettings
from coatstream.telemetry.ledger import DropReason
from coatstream.telemetry.status import SourceStatus, State
from coatstream.telemetry.telemetry import Telemetry

_LOG_AGAIN: Final = 10.0  # seconds between two lines about bad pictures of one camera
_LOOK_AT_GATE: Final = 60.0  # seconds
_LOG_DAMAGE_AGAIN: Final = 1.0  # seconds between two lines about damage


@dataclass(frozen=True, slots=True)
class CameraContext:
    """What all cameras of one worker share. `labels`: the model's classes; `classes`: the tags of most cameras."""

    settings: SettingsTree
    spec: InputSpec
    labels: tuple[Label, ...]
    classes: TagClasses
    fork_server: ForkServer
    events: EventPublisher
    telemetry: Telemetry
    metrics: PipelineMetrics
    loop: asyncio.AbstractEventLoop

    def classes_of(self, camera: CameraSettings) -> TagClasses:
        """Raises ConfigError for tags that this model cannot have."""
        if camera.tags is None:
            return self.classes
        return tag_classes(camera.tags, self.labels, where=f"tags of camera {camera.name}")

    def tags_of(self, camera: CameraSettings) -> CameraTags:
        """A camera without tags has a tagger too: it ends those that earlier settings have left.

        Raises ConfigError for tags that this model cannot have.
        """
        tags, classes = self._tags_of_picture(camera)
        if isinstance(camera.view, str):
            return Tagger(camera.name, tags, classes, fps=camera.fps)
        regions = {region.name: self._region_tagger(camera, region) for region in camera.view}
        return RegionTags(regions, Tagger(camera.name, tags, TagClasses({}), fps=camera.fps))

    def gates_of(self, camera: CameraSettings) -> CameraGates | None:
        """One for its picture, or one for each region; None: all its frames are classified.

        Raises ConfigError for tags that this model cannot have.
        """
        reuse = camera.reuse or self.settings.reuse
        if isinstance(camera.view, str):
            gates = {WHOLE: _gate(reuse, *self._tags_of_picture(camera))} if reuse.enabled else {}
        else:
            gates = {
                region.name: _gate(own, *self._tags_of_region(camera, region))
                for region in camera.view
                if (own := region.reuse or reuse).enabled
            }
        return CameraGates(gates) if gates else None

    def _region_tagger(self, camera: CameraSettings, region: RegionSettings) -> Tagger:
        return Tagger(camera.name, *self._tags_of_region(camera, region), fps=camera.fps)

    def _tags_of_picture(self, camera: CameraSettings) -> tuple[TagSettings, TagClasses]:
        tags = camera.tags or self.settings.tags
        return tags, self.classes_of(camera) if tags.enabled else TagClasses({})

    def _tags_of_region(self, camera: CameraSettings, region: RegionSettings) -> tuple[TagSettings, TagClasses]:
        if region.tags is None:
            return self._tags_of_picture(camera)
        where = f"tags of {region.name} of camera {camera.name}"
        return region.tags, tag_classes(region.tags, self.labels, where=where) if region.tags.enabled else TagClasses(
            {}
        )


def _gate(reuse: ReuseSettings, tags: TagSettings, classes: TagClasses) -> ChangeGate:
    """Judged by these tags; where they are switched off, by labels."""
    if not tags.enabled:
        return ChangeGate(reuse, rng=random.Random(), consumed=Consumed(tolerance=reuse.tolerance))

    def thresholds(tag: str) -> tuple[float, float]:
        own = classes.thresholds(tag, tags)
        return own.end_below, own.start_at

    return ChangeGate(reuse, rng=random.Random(), consumed=Consumed(classes.scores, thresholds, reuse.tolerance))


class ActiveCamera:
    """The observer of its source, of the intake's reader and of its process; these call in its intake thread.

    gates   None: all its frames are classified
    ended   it has come to its own end: a file was read
    active  False: it is read no longer, though its intake thread may still have to end
    """

    def __init__(self, settings: CameraSettings, lease: CameraLease, context: CameraContext) -> None:
        """Raises ConfigError for what cannot be a camera, and for tags that this model cannot have."""
        tree = context.settings
        self.settings = settings
        self.lease = lease
        self.shelf = PictureShelf.wanted(tree.pictures.enabled)
        pictured = self.shelf if tree.pictures.enabled else None
        tagger = context.tags_of(settings)
        self.events = CameraEvents(settings.name, lease, tagger, context.events, loop=context.loop, shelf=pictured)
        self.health = PictureHealth(settings.health or tree.health, settings.name, publish=self.events.picture)
        self.gates = context.gates_of(settings)
        self.process = CameraProcess(
            settings, context.spec, fork_server=context.fork_server, lease=lease, observer=self, shelf=self.shelf
        )
        self.active, self.ended = True, False
        self._ledger, self._status = context.telemetry.ledger, context.telemetry.status
        self._metrics = context.metrics
        self._log_at = self._log_damage_at = 0.0  # monotonic seconds
        self._gate_looked_at, self._gate_why = time.monotonic(), ""
        self._size = (0, 0)  # of its newest picture: height, width
        self._log = structlog.get_logger("cameras")

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def status(self) -> SourceStatus | None:
        """As the intake sees it."""
        return self._status.sources().get(self.name)

    # ---- SourceObserver

    def on_state(self, state: State, reason: DownReason | None, message: str) -> None:
        """The intake has found a new state."""
        if self.active:
            self.ended = state == "ended"
            if self.ended and (damaged := self.process.stats().damaged):
                pictures = self.process.stats().grabbed
                self._log.warning("a file with damage was read", source=self.name, pictures=pictures, damaged=damaged)
            self.events.state(state, reason, message)
        if state == "ended":  # no other worker shall begin it again
            self.lease.camera_ended()

    # ---- CameraObserver

    def opening(self) -> None:
        self.events.opening(self.status)

    def judged(self, frame: Frame) -> Frame:
        self.events.take_tags_over(frame.fence)
        self._look_at_gate()
        self._look_at_size(frame)
        if frame.vitals is None:
            return frame
        faults = self.health.look(frame.vitals, frame.captured_at)
        return replace(frame, faults=faults, suspect=self.health.suspect)

    def _look_at_gate(self) -> None:
        """Log why it saves nothing, where that is so and is news."""
        now = time.monotonic()
        if self.gates is None or now < self._gate_looked_at + _LOOK_AT_GATE:
            return
        self._gate_looked_at, before = now, self._gate_why
        self._gate_why = self.gates.why
        if self._gate_why not in ("", before):
            self._log.info("reusing labels saves nothing", source=self.name, why=self._gate_why)

    def _look_at_size(self, frame: Frame) -> None:
        """Log which regions a picture of this size does not hold: they show its edge, or a part of what they should."""
        size = frame.height, frame.width
        if size == self._size:
            return
        self._size = size
        if beyond := beyond_picture(view_of(self.settings), *size):
            picture = f"{frame.width} x {frame.height}"
            self._log.warning("regions reach beyond the picture", source=self.name, regions=beyond, picture=picture)

    def spent(self, stage: str, seconds: float) -> None:
        self._metrics.observe(stage, seconds)

    def unusable(self, bad: BadFrame) -> None:
        self._ledger.received(self.name)
        self._ledger.dead(self.name, bad.reason)
        now = time.monotonic()
        if now >= self._log_at:  # a broken stream has many
            self._log_at = now + _LOG_AGAIN
            trouble = redact(str(bad))
            self._log.warning("a picture cannot be used", source=self.name, reason=bad.reason.value, trouble=trouble)

    def damaged(self, count: int) -> None:
        """A line a second at most: a stream over a bad line has damage in every picture."""
        now = time.monotonic()
        if now >= self._log_damage_at:
            self._log_damage_at = now + _LOG_DAMAGE_AGAIN
            self._log.warning("pictures are damaged", source=self.name, damaged=self.process.stats().damaged)

    def software(self) -> None:
        wished = self.settings.acceleration
        self._log.warning("no such hardware to decode with: the CPU does", source=self.name, acceleration=wished)

    def replaced(self, count: int) -> None:
        for _ in range(count):
            self._ledger.received(self.name)
            self._ledger.dropped(self.name, DropReason.REPLACED)

    def flows(self, flowing: bool) -> None:
        state: State = "live" if flowing else "stalled"
        reason = None if flowing else DownReason.TIMEOUT
        if self.active and self._status.source(self.name, state, reason):
            self._log.info("source up" if flowing else "source stalled", source=self.name)
            self.events.state(state, reason, "")
