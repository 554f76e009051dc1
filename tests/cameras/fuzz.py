"""Random damage for what reads strangers' bytes: `python -m tests.cameras.fuzz parts|pictures|addresses SECONDS`.

Fails where anything but a refusal comes out, where one input takes longer than a second of CPU, or where memory grows.
"""

import io
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
from coatstream.cameras.address import parse, public_url
from coatstream.cameras.capture.parts import PartSplitter
from coatstream.errors import BadFrame, ConfigError, redact
from coatstream.frames.decoding import decode
from coatstream.settings.model import CameraSettings
from PIL import Image
from pydantic import SecretStr

LONGEST = 1.0  # CPU seconds
GROWTH = 100  # MB, from the thousandth input on
_URLS = ["rtsp://admin:pa@h:554/user=a_password=b_c=1", "http://[::1]:80/x?u=1&p=2#f", "udp://@:1", "file:///a b", "0"]


def parts(data: bytes, chance: random.Random) -> None:
    splitter = PartSplitter(chance.choice([None, b"f", b"next"]), max_bytes=10_000)
    at = 0
    while at < len(data):
        step = chance.randint(1, 3000)
        for part in splitter.feed(data[at : at + step]):
            assert len(part) <= 10_000 + step
        at += step
    splitter.rest()


def pictures(data: bytes, _: random.Random) -> None:
    try:
        picture = decode(data, max_bytes=10**6, max_pixels=10**6)
    except BadFrame:
        return
    assert picture.dtype == np.uint8
    assert picture.shape[0] * picture.shape[1] <= 10**6


def addresses(data: bytes, _: random.Random) -> None:
    url = data.decode("utf-8", "surrogateescape")
    settings = CameraSettings(name="door", url=SecretStr(url))
    with suppress(ConfigError):
        parse(settings)
    public_url(settings)
    redact(url)


def seeds(kind: str) -> list[bytes]:
    if kind == "addresses":
        return [url.encode() for url in _URLS]
    picture = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 64, 3))
    files = []
    for form, options in (
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("TIFF", {"compression": "zstd"}),
    ):  # fmt: skip
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        files.append(stream.getvalue())
    if kind == "pictures":
        return files
    heads = b"--f\r\nContent-Type: image/jpeg\r\n\r\n", b"--f\r\nContent-Length: %d\r\n\r\n" % len(files[0]), b"", b"\n"
    return [b"\r\n".join(head + files[0] for head in heads) * 3]


def damaged(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(data))
        match chance.randint(0, 3):
            case 0:
                data[at : at + 1] = bytes([chance.randint(0, 255)])
            case 1:
                del data[at : at + chance.randint(1, 40)]
            case 2:
                data[at:at] = chance.randbytes(chance.randint(1, 20))
            case 3:
                data[at : at + 4] = chance.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xd8\xff\xda", b"\x7f\xff"])
    return bytes(data)


def fuzz(kind: str, seconds: float) -> tuple[int, float, int]:
    """Inputs, the longest in CPU seconds, and the growth of memory in MB."""
    judge: Callable[[bytes, random.Random], None] = {"parts": parts, "pictures": pictures, "addresses": addresses}[kind]
    chance, until, longest, before = random.Random(), time.monotonic() + seconds, 0.0, 0
    number = 0
    for number, data in enumerate(_inputs(seeds(kind), chance)):
        began = time.process_time()
        try:
            judge(data, chance)
        except Exception:
            print(repr(data))
            raise
        longest = max(longest, time.process_time() - began)
        assert longest < LONGEST, repr(data)
        if number == 1000:
            before = _memory()
        if time.monotonic() > until:
            break
    growth = _memory() - before if number > 1000 else 0
    assert growth < GROWTH
    return number + 1, longest, growth


def _inputs(seeds: list[bytes], chance: random.Random) -> Iterator[bytes]:
    while True:
        yield damaged(chance.choice(seeds), chance)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    inputs, longest, growth = fuzz(sys.argv[1], float(sys.argv[2]))
    print(f"{sys.argv[1]}: {inputs} inputs, the longest {1000 * longest:.1f} ms, memory grew by {growth} MB")
