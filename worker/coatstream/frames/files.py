"""Which files are pictures, which are clips, and what a folder holds. Opens no file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
CLIPS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".3gp", ".flv", ".wmv"}
)


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def is_clip(path: Path) -> bool:
    return path.suffix.lower() in CLIPS


def expand(paths: Iterable[str]) -> Iterator[str]:
    """The paths in the order given; a folder stands for the pictures and clips in it and below, in name order."""
    for path in paths:
        folder = Path(path)
        if folder.is_dir():
            inside = (file for file in sorted(folder.rglob("*")) if file.is_file())
            yield from (str(file) for file in inside if is_picture(file) or is_clip(file))
        else:
            yield path
