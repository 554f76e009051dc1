"""The types that all rooms share: frame, receipt, input spec, scores, prediction.

Plain frozen data. Nothing here knows a camera, Redis or a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

CropMode = Literal["center", "squash", "border"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a picture becomes a model's input. Taken from the model's own data config, never typed by hand.

    height, width   of the model's input, in pixels
    crop_pct        share of the resized picture that the crop keeps, 0 < crop_pct
    crop_mode       timm's: `center` keeps the aspect and loses the borders, `squash` distorts, `border` pads
    interpolation   `bicubic` and `bilinear` equal PIL within one grey level; `area` is OpenCV's (noop engine only)
    mean, std       per channel, RGB, on a scale of 0..1
    """

    height: int
    width: int
    crop_pct: float
    crop_mode: CropMode
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Receipt:
    """How to settle a frame that came from a queue. Plain data, since it crosses threads.

    admitted  the entry's bytes as admission counted them; 0 for a plain XADD, which is not counted
    """

    stream: str
    entry_id: str
    admitted: int = 0


class PictureFault(StrEnum):
    """What can be wrong with a camera's picture."""

    FROZEN = "frozen"
    BLACK = "black"
    COVERED = "covered"
    BLURRED = "blurred"
    CORRUPT = "corrupt"


THUMBNAIL = (36, 64)  # height, width


@dataclass(frozen=True, slots=True, eq=False)
class Vitals:
    """Measurements of a camera's whole picture, made where it was decoded, since the whole picture goes no further.

    brightness   mean grey level, 0..255
    contrast     standard deviation of the grey levels
    sharpness    variance of the Laplacian of the grey picture, scaled to 320 pixels wide
    damage       errors that the decoder reported since the last picture that was taken
    fingerprint  of the exact pixels between the margins, where a clock may run: equal ones are the same picture
    thumbnail    uint8 [36, 64], grey, area-averaged
    colours      uint8 [2, 36, 64]: the thumbnail's Cr and Cb, from some of its pixels
    keyframes    pictures that were coded whole, since the last picture that was taken; 1: each is
    """

    brightness: float
    contrast: float
    sharpness: float
    damage: int
    fingerprint: int
    thumbnail: NDArray[np.uint8] = field(repr=False)
    colours: NDArray[np.uint8] = field(default_factory=lambda: np.full((2, *THUMBNAIL), 128, np.uint8), repr=False)
    keyframes: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture on its way to the model.

    pixels          uint8 [height, width, 3], RGB, already at the model's size; of several views [views, height, ...]
    width, height   of the original picture, in pixels
    captured_at     Unix seconds
    expires_at      Unix seconds after which the label is worthless, or None
    receipt         of queue frames; None for cameras
    meta            the producer's own JSON object, as text, handed through untouched
    fence           cameras: the number of the lease under which it was read; 0: the camera is not shared
    vitals          cameras: measurements of the whole picture
    faults          cameras: what is wrong with the picture
    suspect         cameras: whether it looks sick, for however short a time, and so tells nothing of what is there
    regions         cameras: the names of its regions, if it has any; each that is not `known` has a view
    known           cameras: what is said of some regions without the model, by name (`pipeline.gates`)
    """

    source: str
    frame_id: str
    captured_at: float
    pixels: Pixels = field(repr=False)
    width: int
    height: int
    receipt: Receipt | None = None
    expires_at: float | None = None
    meta: str | None = None
    fence: int = 0
    vitals: Vitals | None = None
    faults: tuple[PictureFault, ...] = ()
    suspect: bool = False
    regions: tuple[str, ...] = ()
    known: "Mapping[str, Prediction]" = field(default_factory=dict, repr=False)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The regions that its views show, in their order."""
        return tuple(name for name in self.regions if name not in self.known)

    @property
    def views(self) -> Pixels:
        """uint8 [views, height, width, 3]."""
        return self.pixels if self.pixels.ndim == 4 else self.pixels[np.newaxis]


@dataclass(frozen=True, slots=True)
class Label:
    """One class of a model. `wnid` is its WordNet id, None where the classes are not ImageNet's."""

    index: int
    wnid: str | None
    name: str


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """A class with its probability, 0..1."""

    label: Label
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """An engine's result for a batch of n pictures.

    indices      int64 [n, k], class indices, best first
    values       float32 [n, k], their probabilities (softmax over all classes)
    embeddings   float32 [n, features], the pooled pre-logits of the same forward pass, or None if not asked for
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The result for one frame. It holds no pixels: keeping predictions must not keep pictures in memory.

    labels       best first
    embedding    float16 [features], or None
    further      labels after the published ones, best first, for tags
    reused       whether the labels are those of an earlier, similar frame
    faults       what is wrong with the picture
    suspect      whether it looks sick, for however short a time
    fence        of the lease under which the frame was read; 0: the camera is not shared
    regions      all labels of each region of the picture that has a name, best first
    """

    source: str
    frame_id: str
    captured_at: float
    labels: tuple[ScoredLabel, ...]
    width: int
    height: int
    receipt: Receipt | None = None
    embedding: NDArray[np.float16] | None = None
    meta: str | None = None
    further: tuple[ScoredLabel, ...] = ()
    reused: bool = False
    faults: tuple[PictureFault, ...] = ()
    suspect: bool = False
    fence: int = 0
    regions: Mapping[str, tuple[ScoredLabel, ...]] = field(default_factory=dict)
