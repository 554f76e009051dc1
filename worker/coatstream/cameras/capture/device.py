"""A V4L2 device of this machine, read by OpenCV, which gives up on a silent one after a time-out."""

import time

from coatstream.cameras.capture.reader import Costs, Trouble
from coatstream.errors import BadFrame, DeadReason, DownReason
from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import DEVICE_TIMEOUT, cv2


class Device(Costs):
    """One open device."""

    media_time = 0.0
    period = 0.04

    def __init__(self, path: str) -> None:
        """Raises Trouble."""
        super().__init__()
        self._capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if not self._capture.isOpened():
            self._capture.release()
            raise Trouble(DownReason.UNREACHABLE, "there is no such device, or another program holds it")

    def grab(self) -> bool:
        """Wait for the next picture. Raises Trouble where none comes."""
        before, began = time.thread_time(), time.monotonic()
        grabbed = self._capture.grab()
        self._cost += time.thread_time() - before
        if not grabbed and time.monotonic() - began > 0.9 * DEVICE_TIMEOUT:
            raise Trouble(DownReason.TIMEOUT, f"no picture for {time.monotonic() - began:.1f} s")
        self.grabbed += grabbed
        return grabbed

    def retrieve(self) -> Pixels:
        """The picture that was grabbed last. Raises BadFrame."""
        before = time.thread_time()
        try:
            whole, picture = self._capture.retrieve()
        except cv2.error:  # a broken JPEG
            whole = False
        finally:
            self._cost += time.thread_time() - before
        if not whole or picture is None:
            self.damaged += 1
            raise BadFrame(DeadReason.UNDECODABLE, "the picture cannot be converted")
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]  # uint8 stays

    def close(self) -> None:
        """Release it, in the thread that reads it: elsewhere OpenCV crashes."""
        self._capture.release()
