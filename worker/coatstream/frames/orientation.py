"""Which way up a picture is: its EXIF orientation (CIPA DC-008, 4.6.4), of any integer type and byte order."""

from typing import Final, Literal

from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import cv2

UPRIGHT: Final = 1
_TAG: Final = 0x0112
_ENTRIES: Final = 1000  # of a directory, at most
_SIZES: Final = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # bytes of the integer types (TIFF 6.0, section 2)
_ORDERS: Final[dict[bytes, Literal["little", "big"]]] = {b"II": "little", b"MM": "big"}


def orientation_in(exif: bytes) -> int:
    """1 to 8, from EXIF data that begins with its TIFF header; 1 where it tells none."""
    order = _ORDERS.get(exif[:2])
    if order is None:
        return UPRIGHT
    start = int.from_bytes(exif[4:8], order)
    for number in range(min(int.from_bytes(exif[start : start + 2], order), _ENTRIES)):
        at = start + 2 + 12 * number
        entry = exif[at : at + 12]
        if len(entry) < 12:
            break
        if int.from_bytes(entry[:2], order) == _TAG:
            size = _SIZES.get(int.from_bytes(entry[2:4], order), 0)
            value = int.from_bytes(entry[8 : 8 + size], order)
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """A picture that was stored with this orientation, as it is to be shown."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]  # uint8 stays
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)  # type: ignore[return-value]
