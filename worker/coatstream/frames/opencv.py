"""OpenCV with its options pinned. Import cv2 from here: OpenCV reads its options from the environment.

An operator's own value of one of these variables is kept. OpenCV decodes pictures and reads V4L2 devices; streams and
files are read with PyAV.
"""

import os
from typing import Final

DEVICE_TIMEOUT: Final = 5.0  # seconds until a silent USB camera counts as lost

_OPTIONS = {
    "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT": f"{DEVICE_TIMEOUT:.0f}",
    "OPENCV_LOG_LEVEL": "FATAL",  # some levels print whole paths
}
for _name, _value in _OPTIONS.items():
    os.environ.setdefault(_name, _value)

import cv2  # noqa: E402  (OpenCV reads some of these once, when it is imported)

cv2.setNumThreads(1)  # one picture, one thread: sources are parallel already, and the cores belong to the model

__all__ = ["DEVICE_TIMEOUT", "cv2"]
