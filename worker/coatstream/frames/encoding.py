"""Encoding: RGB pixels to a picture file's bytes."""

from coatstream.errors import BadFrame, DeadReason
from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import cv2


def encode_jpeg(image: Pixels, *, quality: int = 90) -> bytes:
    """uint8 [height, width, 3] RGB -> a JPEG file's bytes; `quality` is libjpeg's, 1 to 100.

    Raises BadFrame `invalid`.
    """
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:  # JPEG ends at 65,535 pixels a side
        raise BadFrame(DeadReason.INVALID, f"{image.shape[1]} x {image.shape[0]} pixels cannot be a JPEG picture")
    return data.tobytes()
