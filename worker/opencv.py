"""OpenCV with its options pinned: whoever needs cv2 imports it from here, since OpenCV reads them from the environment.

An operator's own value of one of these variables is kept. Nothing else happens here.
"""

import os

_OPTIONS = {
    # Without it one dead camera blocks every other open in the process (opencv#20114).
    "OPENCV_FFMPEG_IS_THREAD_SAFE": "1",
    # key;value|key;value, for every network stream of the process; unknown keys are ignored in silence.
    #   prefer_tcp          TCP first: UDP drops packets, and damaged pictures are delivered as good ones
    #   analyzeduration     microseconds of probing: opens in about 1 s instead of 2
    #   protocol_whitelist  no `file`, `concat` or `subfile`: neither a playlist nor an odd URL reads a local file.
    #                       Clips are therefore handed over as Python file objects, which need no protocol
    #   max_redirects       a camera does not send us to another host
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": (
        "rtsp_flags;prefer_tcp|analyzeduration;1000000|max_redirects;0"
        "|protocol_whitelist;rtsp,rtp,udp,tcp,tls,http,https,crypto"
    ),
    "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT": "5",  # seconds until a silent USB camera counts as lost
    # Silence: FFmpeg's lines go to stdout, where labels are printed, and some levels of both print whole URLs.
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENCV_LOG_LEVEL": "FATAL",
}
for _name, _value in _OPTIONS.items():
    os.environ.setdefault(_name, _value)

import cv2  # noqa: E402  (OpenCV reads some of these once, when it is imported)

cv2.setNumThreads(1)  # one picture, one thread: sources are parallel already, and the cores belong to the model

__all__ = ["cv2"]
