"""Which files are pictures and which are clips, by suffix, else by their first bytes; and what a folder holds."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

FileKind = Literal["picture", "clip"]

PICTURES: Final = frozenset({".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"})
CLIPS: Final = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".3gp",
        ".3g2",
        ".f4v",
        ".mkv",
        ".webm",
        ".avi",
        ".divx",
        ".mpg",
        ".mpeg",
        ".m1v",
        ".m2v",
        ".vob",
        ".ts",
        ".mts",
        ".m2t",
        ".m2ts",
        ".flv",
        ".wmv",
        ".asf",
        ".ogv",
        ".mxf",
        ".dv",
        ".264",
        ".h264",
        ".avc",
        ".265",
        ".h265",
        ".hevc",
        ".dav",
        ".mjpeg",
        ".mjpg",
        ".y4m",
        ".ivf",
        ".obu",
        ".nut",
    }
)
_LOOK: Final = 4096  # bytes
_PICTURE: Final = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF.{4}WEBP|BM.{4}\0\0\0\0|II\*\0|MM\0\*", re.DOTALL)
_CLIP: Final = re.compile(
    rb".{4}(?:ftyp|moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF.{4}AVI |FLV\x01|OggS|\x30\x26\xb2\x75\x8e\x66\xcf\x11|DHAV"
    rb"|\0\0\x01[\xba\xb3\xb0]|\0?\0\0\x01[\x09\x27\x67\x40\x42]"
    rb"|G.{187}G.{187}G|.{4}G.{191}G.{191}G|\x06\x0e\x2b\x34|YUV4MPEG2|DKIF",
    re.DOTALL,
)


def is_picture(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in PICTURES


def kind_of(path: Path) -> FileKind | None:
    """What a file is, by its first bytes where its suffix does not tell; None: neither. Raises OSError."""
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return "picture"
    if suffix in CLIPS:
        return "clip"
    with path.open("rb") as file:
        start = file.read(_LOOK)
    return "picture" if _PICTURE.match(start) else "clip" if _CLIP.match(start) else None


def is_other_picture(start: bytes) -> bool:
    """Whether what begins so is a picture that is read, of another kind than JPEG."""
    return not start.startswith(b"\xff\xd8") and _PICTURE.match(start) is not None


def expand(paths: Iterable[str], passed_over: Callable[[Path], None] = lambda path: None) -> Iterator[str]:
    """The paths in the order given; a folder stands for the pictures and clips in it and below, in name order.

    `passed_over` is told of the folder's other files.
    """
    for path in paths:
        folder = Path(path)
        if not folder.is_dir():
            yield path
            continue
        for file in sorted(folder.rglob("*")):
            if not file.is_file():
                continue
            if _known(file):
                yield str(file)
            else:
                passed_over(file)


def _known(path: Path) -> bool:
    try:
        return kind_of(path) is not None
    except OSError:  # to be said by whom it is read
        return True


def readable_name(path: str) -> str:
    """The path or name as text: U+FFFD stands for bytes that are not UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def readable_path(path: Path) -> Iterator[Path]:
    """An absolute path that leads to this file and is UTF-8, as OpenCV and settings need it: its own, or that of a link
    which lives as long as this context.
    """
    absolute = path.absolute()
    if readable_name(str(absolute)) == str(absolute):
        yield absolute
        return
    with TemporaryDirectory(prefix="coatstream-") as folder:
        link = Path(folder, f"clip{readable_name(absolute.suffix)}")
        link.symlink_to(absolute)
        yield link
