"""Walks over JPEG files without decoding them (ITU T.81, B.1): size, scans, orientation, and where the picture ends."""

import re
from dataclasses import dataclass
from typing import Final

from coatstream.frames.orientation import UPRIGHT, orientation_in

SOI: Final = b"\xff\xd8\xff"
EOI: Final = b"\xff\xd9"
_SCAN: Final = b"\xff\xda"
_EXIF: Final = b"Exif\0\0"
_IN_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # a marker: FF 00 is data, FF D0 to D7 restart it
_SEQUENTIAL: Final = (0xC0, 0xC1)
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES: Final = frozenset((0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Size, orientation by EXIF, and whether the decoder may go over the picture's pixels more than once."""

    width: int
    height: int
    many_scans: bool
    orientation: int


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Of a JPEG whose header is as it should be up to its first scan; None: PIL has to judge.

    libjpeg reads a second scan only of a progressive picture, or where the first one has not all the components.
    """
    if not data.startswith(SOI):
        return None
    at, frame, orientation = 2, None, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 10]
        if length < 2 or at + 2 + length > len(data):
            return None
        if marker == 0xDA and frame is not None and body:
            height, width, components, sequential = frame
            many_scans = not sequential or body[0] != components
            return JpegHeader(width, height, many_scans, orientation or UPRIGHT) if width and height else None
        if marker in _FRAMES and frame is None and length >= 8:
            sides = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            frame = *sides, body[5], marker in _SEQUENTIAL
        elif marker not in _TABLES:
            return None
        elif marker == 0xE1 and body == _EXIF and orientation is None:
            orientation = orientation_in(data[at + 10 : at + 2 + length])
        at += 2 + length
    return None


def scans_of(data: bytes) -> int:
    """The scans of a JPEG up to its end: what follows there, the clip of a motion photo say, is not the decoder's."""
    walk = JpegWalk()
    walk.end_of(data)
    return walk.scans + (data.count(_SCAN, walk.at) if walk.is_lost else 0)


class JpegWalk:
    """Walks over a picture as it arrives, so that neither a thumbnail's end nor one in data is taken for its end.

    at       the first byte that has not been walked over
    scans    so far
    is_lost  there is no segment where one should be
    """

    def __init__(self) -> None:
        self.at = 2
        self.scans = 0
        self.is_lost = False
        self._in_scan = False

    def end_of(self, picture: bytes | bytearray) -> int | None:
        """The length of the picture, once all of it is here. Call again with more of the same."""
        self.is_lost |= len(picture) >= 2 and not picture.startswith(SOI[:2])
        while not self.is_lost:
            if self._in_scan:
                marker = _IN_SCAN.search(picture, self.at)
                if marker is None:
                    self.at = max(self.at, len(picture) - 1)
                    return None
                self.at, self._in_scan = marker.end() - 2, False
            if len(picture) < self.at + 4:
                return self.at + 2 if picture[self.at : self.at + 2] == EOI else None
            if (end := self._pass_segment(picture)) is not None:
                return end
        return None

    def _pass_segment(self, picture: bytes | bytearray) -> int | None:
        at, kind = self.at, picture[self.at + 1]
        if picture[at] != 0xFF:
            self.is_lost = True
        elif kind == 0xD9:
            return at + 2
        elif kind == 0xFF:  # a filling byte
            self.at += 1
        else:
            length = int.from_bytes(picture[at + 2 : at + 4], "big")
            self.is_lost = length < 2
            self.at += 2 + length
            self._in_scan = kind == 0xDA
            self.scans += self._in_scan
        return None
