"""coatstream: cameras or a Redis queue in, labels out, every frame accounted for.

All that is public is in `__all__`; everything else may move. A name is imported when it is first used, so that a
producer or reader loads neither torch nor timm nor OpenCV, and `import coatstream` loads next to nothing.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true; `typing` itself would double what the import costs

if TYPE_CHECKING:
    from coatstream.classifier import AnyPicture as AnyPicture
    from coatstream.classifier import Classification as Classification
    from coatstream.classifier import Classifier as Classifier
    from coatstream.errors import BadFrame as BadFrame
    from coatstream.errors import CoatstreamError as CoatstreamError
    from coatstream.errors import ConfigError as ConfigError
    from coatstream.errors import EngineError as EngineError
    from coatstream.errors import FrameDead as FrameDead
    from coatstream.errors import FrameDropped as FrameDropped
    from coatstream.errors import FrameFailed as FrameFailed
    from coatstream.errors import NoOutcome as NoOutcome
    from coatstream.errors import RedisRefuses as RedisRefuses
    from coatstream.errors import RedisUnavailable as RedisUnavailable
    from coatstream.queue.producing.outbox import QueueFull as QueueFull
    from coatstream.queue.producing.outbox import Terms as Terms
    from coatstream.queue.producing.picture import Picture as Picture
    from coatstream.queue.producing.picture import RawPicture as RawPicture
    from coatstream.queue.producing.producer import AsyncProducer as AsyncProducer
    from coatstream.queue.producing.producer import Producer as Producer
    from coatstream.results.documents import FailureDocument as FailureDocument
    from coatstream.results.documents import LabelDocument as LabelDocument
    from coatstream.results.documents import LabelScore as LabelScore
    from coatstream.results.events.documents import CameraState as CameraState
    from coatstream.results.events.documents import EventDocument as EventDocument
    from coatstream.results.events.documents import PictureSick as PictureSick
    from coatstream.results.events.documents import PictureWell as PictureWell
    from coatstream.results.events.documents import TagEnded as TagEnded
    from coatstream.results.events.documents import TagStarted as TagStarted
    from coatstream.results.events.reader import AsyncEventReader as AsyncEventReader
    from coatstream.results.events.reader import EventReader as EventReader
    from coatstream.results.events.reader import PublishedEvent as PublishedEvent
    from coatstream.results.labels import AsyncLabelReader as AsyncLabelReader
    from coatstream.results.labels import LabelReader as LabelReader
    from coatstream.results.labels import PublishedLabel as PublishedLabel
    from coatstream.settings.model import SettingsTree as SettingsTree

    __version__: str

_NAMES = {
    "classifier": "AnyPicture Classification Classifier",
    "errors": "BadFrame CoatstreamError ConfigError EngineError FrameDead FrameDropped FrameFailed NoOutcome "
    "RedisRefuses RedisUnavailable",
    "queue.producing.outbox": "QueueFull Terms",
    "queue.producing.picture": "Picture RawPicture",
    "queue.producing.producer": "AsyncProducer Producer",
    "results.documents": "FailureDocument LabelDocument LabelScore",
    "results.events.documents": "CameraState EventDocument PictureSick PictureWell TagEnded TagStarted",
    "results.events.reader": "AsyncEventReader EventReader PublishedEvent",
    "results.labels": "AsyncLabelReader LabelReader PublishedLabel",
    "settings.model": "SettingsTree",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOME)  # noqa: PLE0605  # a test holds it and the imports above together


if not TYPE_CHECKING:  # or else a type checker would believe every name

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value = version("coatstream")
        elif name in _HOME:
            value = getattr(import_module(f"coatstream.{_HOME[name]}"), name)
        else:
            raise AttributeError(f"module 'coatstream' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
