"""The engine protocol, and the sizes and shares that every engine prepares. Loads nothing."""

from typing import Final, Protocol

import numpy as np

from coatstream.engine.cores import usable_cores
from coatstream.errors import EngineError
from coatstream.frames.frame import InputSpec, Label, Pixels, Scores
from coatstream.frames.model import ModelInfo

_MAX_STREAMS: Final = 4  # that an engine takes of itself


class NotHere(EngineError):
    """An engine that cannot be had for this model or on this machine, in whatever precision."""


class Engine(Protocol):
    """Turns pictures into scores; knows nothing of cameras, Redis or time.

    Built and warmed on any one thread. `classify` is called from at most `streams` threads at a time, each batch of
    between 1 and max(prepared) pictures; it raises nothing on purpose: an exception there is a model error.
    """

    info: ModelInfo
    spec: InputSpec
    labels: tuple[Label, ...]
    prepared: tuple[int, ...]  # batch sizes made ready by warm_up, ascending; a batch is padded to the next of them
    streams: int

    @property
    def recompilations(self) -> int:
        """Batches that fitted no compiled graph while it served, which should never be; 0 where there are no graphs."""

    def warm_up(self) -> None:
        """Run every prepared size once. Raises EngineError."""

    def classify(self, pixels: Pixels) -> Scores:
        """uint8 [n, height, width, 3] RGB at the spec's size -> scores of the same n pictures, in order."""


def prepared_size(count: int, prepared: tuple[int, ...]) -> int:
    """The batch size that `count` pictures run at: the smallest prepared one that holds them."""
    return next((size for size in prepared if size >= count), count)


def power_sizes(max_size: int) -> tuple[int, ...]:
    """1, 2, 4 ... and max_size itself: few shapes to prepare, and never more than half of a batch is padding."""
    sizes = [1]
    while sizes[-1] * 2 < max_size:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes) if max_size == 1 else (*sizes, max_size)


def padded(pixels: Pixels, size: int) -> Pixels:
    """The pictures in one piece of memory that may be written to, and black ones up to `size`."""
    if len(pixels) == size:
        return np.require(pixels, requirements=("C", "W"))
    batch = np.zeros((size, *pixels.shape[1:]), np.uint8)
    batch[: len(pixels)] = pixels
    return batch


def cpu_shares(streams: int, threads: int) -> tuple[int, int]:
    """(batches at once, cores of one batch); 0 means: choose.

    A stream on each core does more than one stream on all, most of all with small batches (`coatstream bench engine`
    measures both). Hence as many streams as there are cores, up to four: each keeps a batch of its own in memory and
    makes batches smaller.
    """
    cores = usable_cores()
    streams = streams or max(1, min(cores // (threads or 1), _MAX_STREAMS))
    return streams, threads or max(1, cores // streams)
