"""OpenCV with fixed options. Other modules import cv2 from here, since OpenCV reads its options from the environment.

An operator's own value of one of these variables is kept. This is also where FFmpeg's messages can be read.

OpenCV reads the log level of FFmpeg at the first opening of a process, not when it is imported (5.0.0.93). So a parent
may import this module and fork, as long as it has opened nothing: the child enters `overheard()` before its first
opening. Entered later, it does no harm and hears nothing.
"""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# No `file`, `concat` or `subfile`: neither a playlist nor an odd URL reads a local file. Clips are therefore handed
# over as Python file objects, which need no protocol. A camera does not send us to another host (max_redirects).
NETWORK_OPTIONS = "max_redirects;0|protocol_whitelist;rtsp,rtp,udp,tcp,tls,http,https,crypto"
CAPTURE_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # key;value|key;value, read at each opening

_OPTIONS = {
    # Without it one dead camera blocks every other open in the process (opencv#20114).
    "OPENCV_FFMPEG_IS_THREAD_SAFE": "1",
    # For openings that set no options of their own, as coatstream.cameras.capture.stream does for each camera.
    CAPTURE_OPTIONS: NETWORK_OPTIONS,
    "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT": "5",  # seconds until a silent USB camera counts as lost
    # Silent: FFmpeg writes to stdout, where labels are printed, and some levels of both print whole URLs.
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENCV_LOG_LEVEL": "FATAL",
}
for _name, _value in _OPTIONS.items():
    os.environ.setdefault(_name, _value)

import cv2  # noqa: E402  (OpenCV reads some of these once, when it is imported)

cv2.setNumThreads(1)  # one picture, one thread: sources are parallel already, and the cores belong to the model

# FFmpeg's AV_LOG_VERBOSE: the first level that tells a new picture size. From 48 on it prints passwords: never.
_TALKATIVE = {"OPENCV_FFMPEG_LOGLEVEL": "40", "OPENCV_FFMPEG_SKIP_LOG_CALLBACK": "1"}  # SKIP: stderr, not stdout
_READ = 65_536  # bytes: all that a pipe holds
_STDERR = 2


@contextmanager
def overheard() -> Iterator[Callable[[], bytes]]:
    """Replace file descriptor 2 by a pipe; yields a function that returns FFmpeg's messages since its last call.

    The pipe holds 64 KiB, drops what is more, and never blocks. For a child process that reads one camera only: all
    that C code writes to stderr arrives here, credentials included. Python's own sys.stderr still leads out.
    """
    os.environ.update(_TALKATIVE)
    sys.stderr.flush()
    saved, python_stderr = os.dup(_STDERR), sys.stderr
    source, sink = os.pipe()
    try:
        for end in (source, sink):
            os.set_blocking(end, False)
        with suppress(OSError):  # a smaller pipe will do
            fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, _READ)
        os.dup2(sink, _STDERR, inheritable=False)
        sys.stderr = os.fdopen(saved, "w", buffering=1, errors="backslashreplace", closefd=False)
        yield lambda: _all_of(source)
    finally:
        sys.stderr = python_stderr
        os.dup2(saved, _STDERR)
        for end in (saved, source, sink):
            os.close(end)


def _all_of(source: int) -> bytes:
    try:
        return os.read(source, _READ)
    except BlockingIOError:
        return b""


__all__ = ["CAPTURE_OPTIONS", "NETWORK_OPTIONS", "cv2", "overheard"]
