"""Overhearing FFmpeg: whose words go where. In processes of their own, since it is about file descriptor 2."""

import subprocess
import sys

from tests.support.paths import ROOT


def said_by(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)


def test_what_c_writes_is_overheard_and_what_python_writes_goes_out() -> None:
    done = said_by("""
import os, sys
from coatstream.frames.opencv import overheard
with overheard() as words:
    os.write(2, b"[rtsp] rtsp://jo:hunter2@cam/")
    print("a line of Python", file=sys.stderr)
    print(words() == b"[rtsp] rtsp://jo:hunter2@cam/", words() == b"")
os.write(2, b"afterwards")
""")

    assert done.stdout == "True True\n"
    assert done.stderr == "a line of Python\nafterwards"


def test_nobody_waits_for_who_does_not_listen() -> None:
    done = said_by("""
import os
from contextlib import suppress
from coatstream.frames.opencv import overheard
with overheard() as words:
    for _ in range(100):
        with suppress(BlockingIOError):
            os.write(2, b"x" * 10_000)
    print(len(words()) <= 65_536, words())
""")

    assert done.stdout == "True b''\n"


def test_it_leaves_no_file_descriptor_behind() -> None:
    done = said_by("""
import os
from coatstream.frames.opencv import overheard
before = os.listdir("/proc/self/fd")
for _ in range(3):
    with overheard():
        pass
print(os.listdir("/proc/self/fd") == before)
""")

    assert done.stdout == "True\n"


def test_an_import_before_it_does_no_harm_as_long_as_nothing_was_opened() -> None:
    done = said_by("""
from coatstream.frames.opencv import cv2, overheard
from coatstream.cameras.capture.decoder_log import DecoderLog
with overheard() as words:
    cv2.VideoCapture("tcp://127.0.0.1:1", cv2.CAP_FFMPEG, [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000])
    log = DecoderLog()
    log.feed(words())
    print(log.cause.reason)
""")

    assert (done.stdout, done.stderr) == ("unreachable\n", "")
