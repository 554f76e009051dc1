"""Makes video files of all kinds with the `ffmpeg` command, and reads with it what a player shows of them.

`python -m tests.cameras.clips FOLDER` writes them all and says how far this package's pictures are off.
"""

import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from coatstream.frames.frame import Pixels

from tests.support.paths import ASSETS

BIRD = ASSETS / "cockatoo_360p.mp4"
RATE = 10
SECONDS = 1
# Each of the eight ways of a display matrix: a, b, c, d.
TURNS = (
    (1, 0, 0, 1),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (-1, 0, 0, -1),
    (0, 1, -1, 0),
    (0, -1, 1, 0),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
)
_QUIET = ("-x265-params", "log-level=none")
_H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")


@dataclass(frozen=True, slots=True)
class Clip:
    """How to make a file, and what it shows.

    arguments  ffmpeg's, for the output
    size       width and height as a player shows it
    source     a lavfi source: some seconds of a bird by default
    before     arguments in front of the output's, another input say
    copied     arguments of a second run, which copies the streams into the file
    edit       what is done to the bytes at last
    """

    name: str
    arguments: tuple[str, ...]
    size: tuple[int, int] = (176, 144)
    source: str = ""
    before: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    edit: Callable[[bytes], bytes] = bytes

    def make(self, folder: Path) -> Path:
        path = folder / self.name
        coded = folder / f"coded-{self.name}" if self.copied else path
        _ffmpeg(*self.before, "-f", "lavfi", "-i", self.source or bird(), *self.arguments, str(coded))
        if self.copied:
            at = self.copied.index("-c")
            _ffmpeg(*self.copied[:at], "-i", str(coded), *self.copied[at:], str(path))
            coded.unlink()
        path.write_bytes(self.edit(path.read_bytes()))
        return path


def bird(scaled: str = "scale=176:144", *, rate: int = RATE, seconds: float = SECONDS) -> str:
    return f"movie={BIRD},fps={rate},{scaled},setsar=1,trim=duration={seconds}"


def _damaged_at(place: float) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        at = int(place * len(data))
        return data[:at] + bytes((7 * number) % 256 for number in range(120)) + data[at + 120 :]

    return edit


def _cut_at(place: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(place * len(data))]


def _without_slice(number: int) -> Callable[[bytes], bytes]:
    """A raw HEVC stream that has lost one of its slices (ITU-T H.265, 7.4.2.2: types up to 31)."""

    def edit(data: bytes) -> bytes:
        units = re.split(rb"(?=\x00\x00\x00\x01|(?<!\x00)\x00\x00\x01)", data)
        slices = [unit for unit in units if unit and unit[unit.index(1) + 1] >> 1 < 32]
        return b"".join(unit for unit in units if unit is not slices[number])

    return edit


def _turned(a: int, b: int, c: int, d: int) -> Callable[[bytes], bytes]:
    """A display matrix in place of the one that turns nothing (ISO/IEC 14496-12, 8.3.2)."""

    def matrix(*values: int) -> bytes:
        a, b, c, d = (65536 * value for value in values)
        return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)

    def edit(data: bytes) -> bytes:
        track = data.index(b"tkhd")
        at = data.index(matrix(1, 0, 0, 1), track)
        return data[:at] + matrix(a, b, c, d) + data[at + 36 :]

    return edit


def _cover_first(data: bytes) -> bytes:
    """The parts of `moov` in another order: what is said of the film, its cover too, before its tracks."""
    start = data.index(b"moov") - 4
    end = start + int.from_bytes(data[start : start + 4], "big")
    parts, at = [], start + 8
    while at < end:
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at : at + size])
        at += size
    parts.sort(key=lambda part: part[4:8] == b"trak")
    return data[: start + 8] + b"".join(parts) + data[end:]


def _ffmpeg(*arguments: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True, stdin=subprocess.DEVNULL, timeout=120)


def frames_of(path: Path, size: tuple[int, int]) -> list[Pixels]:
    """Every frame as the ffmpeg command shows it: turned, with square pixels; uint8 [height, width, 3] RGB."""
    # Interlaced pictures are scaled by field, as newer releases of ffmpeg do by themselves.
    shape = "scale=w=round(iw*if(sar\\,sar\\,1)):h=ih:interl=-1,setsar=1"
    command = ["ffmpeg", "-v", "quiet", "-i", str(path), "-fps_mode", "passthrough", "-vf", shape]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=120).stdout
    width, height = size
    whole = len(data) // (width * height * 3)
    assert len(data) == whole * width * height * 3, f"ffmpeg shows {path.name} at another size than {size}"
    return list(np.frombuffer(data, np.uint8).reshape(whole, height, width, 3))


def clips() -> Iterator[Clip]:
    yield from _codecs()
    yield from _interlaced()
    yield from _shapes()
    yield from _colours()
    yield from _timing()
    yield from _tracks()
    yield from _damaged()


def _codecs() -> Iterator[Clip]:
    b_frames = (*_H264[:2], "-preset", "veryfast", "-bf", "3", "-pix_fmt", "yuv420p")
    yield Clip("h264.mp4", _H264)
    yield Clip("h264-b.mkv", b_frames)
    yield Clip("h264-b.ts", b_frames)
    yield Clip("h264.264", _H264)
    yield Clip("h264.flv", _H264)
    yield Clip("h264.mov", _H264)
    yield Clip("h264.avi", _H264)
    yield Clip("h264-444.mp4", (*_H264[:4], "-pix_fmt", "yuv444p"))
    yield Clip("hevc.mp4", ("-c:v", "libx265", "-preset", "ultrafast", *_QUIET))
    yield Clip("hevc.265", ("-c:v", "libx265", "-preset", "ultrafast", *_QUIET))
    yield Clip("av1.mp4", ("-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime"))
    yield Clip("av1.webm", ("-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime"))
    yield Clip("vp8.webm", ("-c:v", "libvpx", "-deadline", "realtime"))
    yield Clip("vp9.webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime"))
    yield Clip("vp9.mkv", ("-c:v", "libvpx-vp9", "-deadline", "realtime"))
    yield Clip("mpeg2.mpg", ("-c:v", "mpeg2video", "-q:v", "3", "-r", "25"))
    yield Clip("mpeg2.ts", ("-c:v", "mpeg2video", "-q:v", "3", "-bf", "2", "-r", "25"))
    yield Clip("mpeg2.vob", ("-c:v", "mpeg2video", "-q:v", "3", "-r", "25", "-f", "vob"))
    yield Clip("mpeg4.avi", ("-c:v", "mpeg4", "-q:v", "3"))
    yield Clip("mpeg4-b.mp4", ("-c:v", "mpeg4", "-q:v", "3", "-bf", "2"))
    yield Clip("h263.3gp", ("-c:v", "h263", "-q:v", "3"))
    yield Clip("prores.mov", ("-c:v", "prores_ks"))
    yield Clip("ffv1.mkv", ("-c:v", "ffv1"))
    yield Clip("mjpeg.avi", ("-c:v", "mjpeg", "-q:v", "3"))
    yield Clip("mjpeg.mov", ("-c:v", "mjpeg", "-q:v", "3"))
    yield Clip("mjpeg.mjpeg", ("-c:v", "mjpeg", "-q:v", "3", "-f", "mjpeg"))
    yield Clip("wmv2.wmv", ("-c:v", "wmv2", "-q:v", "3"))
    yield Clip("theora.ogv", ("-c:v", "libtheora", "-q:v", "8"))
    dv = bird("scale=720:576", rate=25, seconds=0.4)
    yield Clip("dv.dv", ("-c:v", "dvvideo", "-pix_fmt", "yuv420p", "-aspect", "4:3"), (768, 576), source=dv)
    yield Clip("dv-wide.avi", ("-c:v", "dvvideo", "-pix_fmt", "yuv420p", "-aspect", "16:9"), (1024, 576), source=dv)


def _interlaced() -> Iterator[Clip]:
    fields = f"{bird(rate=20)},interlace"
    x264 = ("-x264-params", "interlaced=1:tff=1", "-flags", "+ildct+ilme")
    yield Clip("interlaced-h264.mp4", (*_H264, *x264), source=fields)
    yield Clip("interlaced-h264.ts", (*_H264, *x264), source=fields)
    yield Clip(
        "interlaced-mpeg2.mpg", ("-c:v", "mpeg2video", "-q:v", "3", "-flags", "+ildct+ilme", "-r", "25"), source=fields
    )
    yield Clip("interlaced-mpeg4.avi", ("-c:v", "mpeg4", "-q:v", "3", "-flags", "+ildct+ilme"), source=fields)
    yield Clip("interlaced-prores.mov", ("-c:v", "prores_ks", "-flags", "+ildct"), source=fields)
    yield Clip("interlaced-ffv1.mkv", ("-c:v", "ffv1", "-top", "1", "-flags", "+ildct"), source=fields)


def _shapes() -> Iterator[Clip]:
    yield Clip("sar-2.mp4", (*_H264, "-vf", "setsar=2/1"), (352, 144))
    yield Clip("sar-half.mp4", (*_H264, "-vf", "setsar=1/2"), (88, 144))
    yield Clip("sar-12-11.ts", (*_H264, "-vf", "setsar=12/11"), (192, 144))
    yield Clip("sar-40-33.mkv", ("-c:v", "mpeg4", "-q:v", "3", "-vf", "setsar=40/33"), (213, 144))
    yield Clip("sar-pal.mpg", ("-c:v", "mpeg2video", "-q:v", "3", "-r", "25", "-aspect", "16:9"), (256, 144))
    for width, height in ((175, 143), (33, 17), (18, 100), (1, 1)):
        source = bird(f"scale={width}:{height}", seconds=0.5)
        arguments = ("-c:v", "ffv1", "-pix_fmt", "yuv444p")
        yield Clip(f"odd-{width}-{height}.mkv", arguments, (width, height), source=source)
    yield Clip("odd-h264.mp4", _H264, (174, 142), source=bird("scale=174:142", seconds=0.5))
    for number, turn in enumerate(TURNS):
        lying = turn[0] == 0
        yield Clip(f"turned-{number}.mp4", _H264, (144, 176) if lying else (176, 144), edit=_turned(*turn))
        # Pixels that are twice as wide as high: a player makes a picture that lies on its side narrower.
        wide = (*_H264, "-vf", "setsar=2/1")
        yield Clip(f"turned-{number}-wide.mov", wide, (72, 176) if lying else (352, 144), edit=_turned(*turn))


def _colours() -> Iterator[Clip]:
    for matrix in ("bt709", "smpte170m", "bt2020nc"):
        for span in ("tv", "pc"):
            out = "bt2020" if matrix == "bt2020nc" else "bt709" if matrix == "bt709" else "bt601"
            tags = ("-colorspace", matrix, "-color_range", span)
            scale = ("-vf", f"scale=out_color_matrix={out}:out_range={span}")
            bars = f"testsrc2=size=176x144:rate={RATE}:duration=0.5"
            yield Clip(f"colour-{matrix}-{span}.mp4", (*_H264, *scale, *tags), source=bars)
    yield Clip("10-bit-h264.mp4", (*_H264[:4], "-pix_fmt", "yuv420p10le"))
    yield Clip(
        "10-bit-hevc.mkv",
        ("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le", *_QUIET),
    )
    yield Clip(
        "10-bit-vp9.webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-profile:v", "2", "-pix_fmt", "yuv420p10le")
    )
    bars = f"testsrc2=size=176x144:rate={RATE}:duration=0.5"
    x265 = ("-c:v", "libx265", "-preset", "ultrafast", *_QUIET)
    yield Clip("10-bit-bars.mkv", (*x265, "-pix_fmt", "yuv420p10le"), source=bars)
    full = ("-color_range", "pc", "-colorspace", "bt709", "-vf", "scale=out_range=pc:out_color_matrix=bt709")
    yield Clip("10-bit-bars-full.mp4", (*x265, "-pix_fmt", "yuv420p10le", *full), source=bars)
    yield Clip("sar-bars.mp4", (*_H264, "-vf", "setsar=12/11"), (192, 144), source=bars)
    dv = ("-c:v", "dvvideo", "-pix_fmt", "yuv411p", "-aspect", "4:3", "-r", "30000/1001")
    yield Clip("dv-ntsc-bars.dv", dv, (640, 480), source=bars.replace("176x144", "720x480"))
    for matrix in ("ycgco", "bt2020c", "chroma-derived-nc"):  # that libswscale refuses
        yield Clip(f"matrix-{matrix}.mkv", (*_H264, "-colorspace", matrix), source=bars)
    yield Clip("grey.mkv", ("-c:v", "ffv1", "-pix_fmt", "gray"))
    yield Clip("rgb.avi", ("-c:v", "rawvideo", "-pix_fmt", "bgr24"))


def _timing() -> Iterator[Clip]:
    uneven = f"{bird(rate=20)},select='not(mod(n,3))+lt(n,6)'"
    yield Clip("vfr.mkv", (*_H264, "-fps_mode", "vfr"), source=uneven)
    yield Clip("vfr.mp4", (*_H264, "-fps_mode", "vfr"), source=uneven)
    yield Clip("edit-list.mp4", (*_H264, "-g", "5"), copied=("-ss", "0.35", "-c", "copy"))
    yield Clip(
        "negative.mkv",
        (*_H264, "-bf", "2"),
        copied=("-itsoffset", "-0.3", "-c", "copy", "-copyts", "-avoid_negative_ts", "disabled"),
    )
    yield Clip("late.ts", (*_H264, "-output_ts_offset", "95000"))
    yield Clip("one-frame.mp4", (*_H264, "-frames:v", "1"))


def _tracks() -> Iterator[Clip]:
    small = ("-f", "lavfi", "-i", f"testsrc2=size=88x72:rate={RATE}:duration={SECONDS},negate")
    second = ("-map", "0", "-map", "1")
    yield Clip("two-tracks.mkv", (*_H264, *second, "-disposition:0", "0", "-disposition:1", "default"), before=small)
    yield Clip("two-tracks.mp4", (*_H264, *second, "-disposition:0", "0", "-disposition:1", "default"), before=small)
    cover = ("-f", "lavfi", "-i", "testsrc2=size=88x72:rate=10:duration=0.1")
    covered = (
        "-map",
        "1",
        "-map",
        "0",
        *_H264,
        "-c:v:1",
        "mjpeg",
        "-pix_fmt:v:1",
        "yuvj420p",
        "-disposition:v:1",
        "attached_pic",
    )
    yield Clip("cover.mp4", covered, before=cover)
    yield Clip("cover-first.mp4", covered, before=cover, edit=_cover_first)
    sound = ("-f", "lavfi", "-i", "sine=duration=1")
    yield Clip("with-sound.mp4", (*_H264, "-map", "0", "-map", "1", "-c:a", "aac"), before=sound)


def _damaged() -> Iterator[Clip]:
    for place, name in ((0.12, "head"), (0.5, "middle"), (0.9, "tail")):
        yield Clip(f"damaged-{name}.ts", (*_H264, "-g", "5"), edit=_damaged_at(place))
        yield Clip(f"damaged-{name}.avi", ("-c:v", "mpeg4", "-q:v", "3", "-g", "5"), edit=_damaged_at(place))
        yield Clip(f"damaged-{name}.mkv", (*_H264, "-g", "5"), edit=_damaged_at(place))
    x265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=5:min-keyint=5")
    yield Clip("damaged-lost-key-frame.265", x265, edit=_without_slice(0))
    yield Clip("damaged-lost-picture.265", x265, edit=_without_slice(6))
    yield Clip("cut-off.ts", (*_H264, "-g", "5"), edit=_cut_at(0.7))
    yield Clip("cut-off.mkv", (*_H264, "-g", "5"), edit=_cut_at(0.7))


if __name__ == "__main__":
    from tests.cameras.test_clips import compared

    for clip in clips():
        theirs, ours, off, damage = compared(clip, Path(sys.argv[1]))
        print(f"{clip.name:<28} {theirs:>3} {ours:>3} frames, {off[-1]:.2f} levels off at most, {damage} damaged")
