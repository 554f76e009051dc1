"""A camera's last pictures, small, in memory that its process and the worker share.

Events and previews take theirs from here. So the process is never asked and never waited for, its pictures outlive it
when it is killed, and what becomes a JPEG for Redis and browsers is made from plain pixels, by the worker: a process
that a decoder's bug has handed to a stranger cannot send a file of its own making. Linux only.
"""

import hashlib
import math
import mmap
import os
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Final, Self

import numpy as np

from coatstream.frames.frame import Pixels
from coatstream.frames.still import LARGEST, Still, reduced

SLOTS: Final = 4  # at 5 frames a second the frame that an event is about is among them for 0.8 s
LEAST: Final = 0.08  # seconds between two pictures: of 60 frames a second every fifth is kept, of 10 each
_SIDES: Final = (1, LARGEST)
_HEAD: Final = struct.Struct("<QdHH16s")  # count of writes (odd: it is being written), captured_at, width, height, name
_WANTED: Final = 0  # offset of the byte that tells the process whether to write
_FIRST: Final = 4096  # offset of the first slot
_SLOT: Final = 64 + LARGEST * LARGEST * 3
_SIZE: Final = _FIRST + SLOTS * _SLOT

_Head = tuple[int, float, int, int, bytes]


class PictureShelf:
    """The worker's side. Any thread may read.

    descriptor  of the memory, for the process that is to fill it
    """

    def __init__(self) -> None:
        """Raises OSError where there is no such memory, or no descriptor left."""
        import fcntl  # not on Windows, where this module can be imported still

        self.descriptor = os.memfd_create("coatstream-pictures", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, _SIZE)
        # Or the process could cut it off, and the worker's next look at it would be a SIGBUS.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self._memory = mmap.mmap(self.descriptor, _SIZE)

    @classmethod
    def wanted(cls, wanted: bool) -> Self | None:
        """A new one, filled from the start if it is `wanted`; None where that cannot be, and the camera has none."""
        try:
            shelf = cls()
        except OSError:
            return None
        shelf.want(wanted)
        return shelf

    def want(self, wanted: bool) -> None:
        """Whether the process shall fill it. Unwanted it costs nothing."""
        self._memory[_WANTED] = int(wanted)

    def find(self, frame_id: str, captured_at: float) -> Still | None:
        """The picture of this frame; else the one that is nearest in time. None: there is none yet."""
        name = _hashed(frame_id)
        for at, head in sorted(self._heads(), key=lambda one: (one[1][4] != name, abs(one[1][1] - captured_at))):
            if (still := self._read(at, head)) is not None:
                return still
        return None

    def exact(self, frame_id: str) -> Still | None:
        """The picture of this frame, if it is there."""
        name = _hashed(frame_id)
        found = [place for place in self._heads() if place[1][4] == name]
        return self._read(*found[0]) if found else None

    def newest(self) -> Still | None:
        """None: there is none yet."""
        for at, head in sorted(self._heads(), key=lambda one: -one[1][0]):
            if (still := self._read(at, head)) is not None:
                return still
        return None

    def _heads(self) -> Iterator[tuple[int, _Head]]:
        """Of each slot that holds a whole picture. The process may be under a stranger's control: all is checked."""
        for at in range(_FIRST, _SIZE, _SLOT):
            head = _HEAD.unpack_from(self._memory, at)
            writes, captured_at, width, height, _ = head
            sides_fit = all(_SIDES[0] <= side <= _SIDES[1] for side in (width, height))
            if writes and writes % 2 == 0 and sides_fit and math.isfinite(captured_at):
                yield at, head

    def _read(self, at: int, head: _Head) -> Still | None:
        """A copy; None where the process has written to the slot meanwhile."""
        _, captured_at, width, height, name = head
        pixels = _pixels(self._memory, at, width, height).copy()
        if _HEAD.unpack_from(self._memory, at) != head:
            return None
        return Still(name.hex(), captured_at, pixels)


class ShelfWriter:
    """The process's side. Used by the one thread that reads the camera."""

    def __init__(self, descriptor: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Closes the descriptor; the memory stays."""
        self._memory = mmap.mmap(descriptor, _SIZE)
        os.close(descriptor)
        self._monotonic = monotonic
        self._written_at = -math.inf
        # The process before this one may have been killed in a write.
        self._count = max(_HEAD.unpack_from(self._memory, at)[0] for at in range(_FIRST, _SIZE, _SLOT)) // 2

    def put(self, frame_id: str, captured_at: float, picture: Pixels) -> None:
        """uint8 [height, width, 3] RGB, of any size; where one is wanted, and the last one is old enough."""
        now = self._monotonic()
        if not self._memory[_WANTED] or now - self._written_at < LEAST:
            return
        self._written_at = now
        small = reduced(picture)
        height, width = small.shape[:2]
        at = _FIRST + self._count % SLOTS * _SLOT
        rest = captured_at, width, height, _hashed(frame_id)
        _HEAD.pack_into(self._memory, at, 2 * self._count + 1, *rest)
        _pixels(self._memory, at, width, height)[:] = small
        self._count += 1
        _HEAD.pack_into(self._memory, at, 2 * self._count, *rest)


def _pixels(memory: mmap.mmap, at: int, width: int, height: int) -> Pixels:
    return np.frombuffer(memory, np.uint8, width * height * 3, at + 64).reshape(height, width, 3)


def _hashed(frame_id: str) -> bytes:
    return hashlib.blake2b(frame_id.encode("utf-8", "replace"), digest_size=16).digest()
