"""Makes an HEIC picture of tiles, as telephones write them, from one that the `ffmpeg` command encodes."""

import struct
import subprocess
from pathlib import Path

SIDE = 64  # pixels of a tile


def tiled(folder: Path, tiles: int) -> Path:
    """So many tiles in a row (ISO/IEC 23008-12, 6.6.2.3); one alone is a picture without a grid."""
    config, coded = _coded(folder)
    start = _box(b"ftyp", b"heic\0\0\0\0mif1heic")
    length = len(start) + len(_meta(tiles, config, len(coded), 0)) + 8
    path = folder / f"{tiles}.heic"
    path.write_bytes(start + _meta(tiles, config, len(coded), length) + _box(b"mdat", coded * tiles))
    return path


def _coded(folder: Path) -> tuple[bytes, bytes]:
    """The decoder's configuration and one coded picture."""
    path = folder / "tile.mp4"
    source = ["-f", "lavfi", "-i", f"testsrc2=size={SIDE}x{SIDE}:rate=10", "-frames:v", "1"]
    codec = ["-c:v", "libx265", "-x265-params", "log-level=none", "-tag:v", "hvc1", str(path)]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *source, *codec], check=True, stdin=subprocess.DEVNULL, timeout=60)
    data = path.read_bytes()
    return _content(data, b"hvcC"), _content(data, b"mdat")


def _content(data: bytes, kind: bytes) -> bytes:
    at = data.index(kind)
    return data[at + 4 : at - 4 + int.from_bytes(data[at - 4 : at], "big")]


def _box(kind: bytes, content: bytes, *, version: int | None = None) -> bytes:
    head = b"" if version is None else struct.pack(">I", version << 24)
    return struct.pack(">I4s", 8 + len(head) + len(content), kind) + head + content


def _meta(tiles: int, config: bytes, size: int, start: int) -> bytes:
    """Items 1 to `tiles` are pictures; the one behind them, where there are more than one, is the grid."""
    numbers, grid = range(1, tiles + 1), tiles + 1 if tiles > 1 else None
    count = tiles + (grid is not None)
    places = b"".join(struct.pack(">HHHHII", n, 0, 0, 1, start + (n - 1) * size, size) for n in numbers)
    infos = b"".join(_box(b"infe", struct.pack(">HH4sB", n, 0, b"hvc1", 0), version=2) for n in numbers)
    kinds = b"".join(struct.pack(">HBBB", n, 2, 0x81, 2) for n in numbers)
    references = rest = b""
    if grid is not None:
        places += struct.pack(">HHHHII", grid, 1, 0, 1, 0, 8)
        infos += _box(b"infe", struct.pack(">HH4sB", grid, 0, b"grid", 0), version=2)
        kinds += struct.pack(">HBB", grid, 1, 3)
        links = _box(b"dimg", struct.pack(f">HH{tiles}H", grid, tiles, *numbers))
        references = _box(b"iref", links, version=0)
        rest = _box(b"idat", struct.pack(">BBBBHH", 0, 0, 0, tiles - 1, SIDE * tiles, SIDE))
    sizes = [_box(b"ispe", struct.pack(">II", width, SIDE), version=0) for width in (SIDE, SIDE * tiles)]
    properties = _box(b"ipco", _box(b"hvcC", config) + b"".join(sizes))
    properties += _box(b"ipma", struct.pack(">I", count) + kinds, version=0)
    parts = [
        _box(b"hdlr", struct.pack(">I4s13x", 0, b"pict"), version=0),
        _box(b"pitm", struct.pack(">H", grid or 1), version=0),
        _box(b"iloc", struct.pack(">BBH", 0x44, 0, count) + places, version=1),
        _box(b"iinf", struct.pack(">H", count) + infos, version=0),
        references,
        _box(b"iprp", properties),
        rest,
    ]
    return _box(b"meta", b"".join(parts), version=0)
