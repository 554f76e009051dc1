"""Opens one camera through OpenCV, with the options of its kind, and counts what OpenCV does not. Retries nothing.

How FFmpeg's options were chosen (OpenCV 5.0.0.93, FFmpeg 8.1.1, measured):

* `fpsprobesize;0`: the camera's rate is not estimated, since nobody here believes it. RTSP opens as soon as the first
  key frame has come, with a backlog of 8 pictures; before, it took a second longer and 26. MPEG-TS and HLS gain as
  much, MJPEG opens at once anyway. Joined in the middle of a GOP, without parameter sets in the SDP, or with B-frames,
  the first picture is a whole one as well.
* `probesize;32`, RTSP only: not even 7 pictures are looked at to guess the order of B-frames, so a backlog of 1 is
  left: 0.3 s less at 25 pictures a second, 1.4 s at 5; so much earlier can a worker take a camera over. A camera that
  tells its picture's size neither in the SDP nor at once opens without one then, and is opened once more.
* `rtsp_transport`: as set, and nothing else. UDP loses packets, and damaged pictures are delivered as good ones.
* `live_start_index;-1`: HLS begins with the newest segment instead of the third to last.
* `avdiscard;nonkey` (OpenCV's own): key frames only, at a ninth of the CPU.
* `tls_verify;1|ca_file`: FFmpeg verifies nothing by default. It does hand this on to RTSP's connection, but not to the
  segments of HLS, of which only the playlist is verified.
"""

import os
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from coatstream.cameras.address import Address, Kind
from coatstream.cameras.capture.decoder_log import Cause
from coatstream.errors import DownReason
from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import CAPTURE_OPTIONS, NETWORK_OPTIONS, cv2
from coatstream.settings.model import CameraSettings

STALE: Final = 0.9  # of the read timeout: OpenCV answers a time-out with True and an old picture from the decoder
HLS_READ = 30.0  # seconds: three segments of HLS at their usual longest
KEYFRAME_READ = 12.0  # seconds: cameras send a key frame at least every 10
_ACCELERATIONS = {
    "none": cv2.VIDEO_ACCELERATION_NONE,
    "any": cv2.VIDEO_ACCELERATION_ANY,
    "vaapi": cv2.VIDEO_ACCELERATION_VAAPI,
    "d3d11": cv2.VIDEO_ACCELERATION_D3D11,
    "mfx": cv2.VIDEO_ACCELERATION_MFX,
}
_AUTHORITIES = (  # where systems keep them; OpenCV's own OpenSSL looks nowhere
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_ENVIRONMENT = threading.Lock()  # the options of an opening are the process's


class Failure(Exception):
    """An opening failed for a reason that is known here, before anything was connected to."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.words)
        self.cause = cause


def read_timeout(settings: CameraSettings, address: Address) -> float:
    """Seconds that a picture may take to come: as set, but longer than what lies between two by nature."""
    if address.is_hls:
        return max(settings.read_timeout, HLS_READ)
    return max(settings.read_timeout, KEYFRAME_READ) if settings.keyframes_only else settings.read_timeout


def options(settings: CameraSettings, address: Address, *, patient: bool = False) -> str:
    """FFmpeg's options for a network stream; `patient`: look at as much of it as is needed. Raises Failure."""
    chosen = [NETWORK_OPTIONS, "fpsprobesize;0"]
    if address.is_rtsp:
        chosen += [] if patient else ["probesize;32"]
        # RTSP over TLS is TCP in any case.
        chosen.append(f"rtsp_transport;{'tcp' if address.is_secure else settings.transport}")
    if address.is_hls:
        chosen.append("live_start_index;-1")
    if settings.keyframes_only:
        chosen.append("avdiscard;nonkey")
    if address.is_secure and settings.tls_verify:
        chosen.append(f"tls_verify;1|ca_file;{_authorities(settings.tls_ca)}")
    return "|".join(chosen)


def _authorities(given: Path | None) -> str:
    """The file of those whose certificates are believed. Raises Failure."""
    if given is not None:
        if not given.is_file():
            raise Failure(Cause(DownReason.REFUSED, f"tls_ca: there is no file {given}"))
        if {"|", ";"} & set(str(given)):
            raise Failure(Cause(DownReason.REFUSED, "tls_ca: its path may hold neither | nor ;"))
        return str(given)
    for path in (ssl.get_default_verify_paths().cafile, *_AUTHORITIES):
        if path and Path(path).is_file():
            return path
    words = "this machine has no file of certificate authorities; set tls_ca, or tls_verify: false"
    raise Failure(Cause(DownReason.REFUSED, words))


@contextmanager
def opened(settings: CameraSettings, address: Address) -> Iterator["Capture | None"]:
    """The camera, or None where OpenCV cannot open it; released by the thread that reads it: elsewhere OpenCV crashes.

    Raises Failure.
    """
    with ExitStack() as stack:
        match address.kind:
            case Kind.NETWORK:
                capture = _network(settings, address)
                if address.is_rtsp and capture.isOpened() and not capture.get(cv2.CAP_PROP_FRAME_WIDTH):
                    capture.release()
                    capture = _network(settings, address, patient=True)
            case Kind.DEVICE:
                capture = cv2.VideoCapture(address.location, cv2.CAP_V4L2)
                capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            case Kind.FILE:
                capture = _file(address.location, stack)
            case Kind.FOLDER:
                raise ValueError("a folder is nothing for OpenCV")
        stack.callback(capture.release)
        yield Capture(capture) if capture.isOpened() else None


def _network(settings: CameraSettings, address: Address, *, patient: bool = False) -> cv2.VideoCapture:
    parameters = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        int(settings.open_timeout * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        int(read_timeout(settings, address) * 1000),
        # Each further decoder thread delays the stream by one picture and takes 6 MB at 1080p.
        cv2.CAP_PROP_N_THREADS,
        1,
    ]
    if settings.acceleration != "none":
        parameters += [cv2.CAP_PROP_HW_ACCELERATION, _ACCELERATIONS[settings.acceleration]]
    wanted = options(settings, address, patient=patient)
    with _ENVIRONMENT:
        before = os.environ.get(CAPTURE_OPTIONS)
        # What an operator has set goes last: of two equal keys FFmpeg takes the later one.
        own = f"|{before}" if before and before != NETWORK_OPTIONS else ""
        os.environ[CAPTURE_OPTIONS] = wanted + own
        try:
            return cv2.VideoCapture(address.location, cv2.CAP_FFMPEG, parameters)
        finally:
            os.environ[CAPTURE_OPTIONS] = before or NETWORK_OPTIONS


def _file(location: str, stack: ExitStack) -> cv2.VideoCapture:
    """A plain file, opened by Python: FFmpeg sees bytes and no path, so a playlist in it leads nowhere."""
    path = Path(location)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe's open would wait for a writer
            raise Failure(Cause(DownReason.REFUSED, "it is not a plain file"))
        file: Any = stack.enter_context(path.open("rb"))  # OpenCV's stub names an interface that nothing implements
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise Failure(Cause(DownReason.UNREACHABLE, (why or "not a path").lower())) from None
    return cv2.VideoCapture(file, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


class Capture:
    """One open capture in the one thread that owns it, with what OpenCV does not count."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self.grabbed = 0
        self._capture = capture
        self._cost = 0.0
        self._rate = capture.get(cv2.CAP_PROP_FPS)

    def accelerated_by(self, wanted: str) -> bool:
        """Whether the decoder is the one that was asked for."""
        return int(self._capture.get(cv2.CAP_PROP_HW_ACCELERATION)) == _ACCELERATIONS[wanted]

    def grab(self) -> bool:
        """Read and decode the next picture."""
        before = time.thread_time()
        grabbed = self._capture.grab()
        self._cost += time.thread_time() - before
        self.grabbed += grabbed
        return grabbed

    @property
    def media_time(self) -> float:
        """Seconds from the start of the stream to the picture that was grabbed last."""
        position = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if position > 0 or not self._rate:
            return position
        return (self.grabbed - 1) / self._rate  # a raw .h264 file has no timestamps: always 0

    @property
    def period(self) -> float:
        """Seconds for which one picture is shown."""
        return 1 / self._rate if self._rate > 0 else 0.04

    def retrieve(self) -> Pixels | None:
        """The picture that was grabbed last, uint8 [height, width, 3] BGR, or None where it is broken."""
        before = time.thread_time()
        try:
            whole, picture = self._capture.retrieve()
        except cv2.error:  # a USB camera's broken JPEG
            return None
        finally:
            self._cost += time.thread_time() - before
        return picture if whole else None  # type: ignore[return-value]  # asked for uint8

    def take_cost(self) -> float:
        """CPU seconds of this thread in decoding since the last call; one decoder thread, so all of them."""
        cost, self._cost = self._cost, 0.0
        return cost
