"""Makes the clips that `coatstream bench cameras` decodes: the package's own clip as a camera would send it.

    python -m bench clips [--ffmpeg PATH]

Needs an ffmpeg with libx264, for instance that of the wheel imageio-ffmpeg; nobody else does. Two seconds at 25
pictures a second each, enlarged from 640 x 360, with fresh noise in each picture, since noise is what a decoder works
on: without it an enlarged clip decodes in half the time of a camera's own. H.264 High, no B-frames, one key frame in
two seconds, at the bit rate of a common camera. The encoder is told to waste bits rather than to fall below the rate.
"""

import subprocess
from pathlib import Path
from typing import Annotated

import typer

ASSETS = Path(__file__).parents[1] / "worker" / "coatstream" / "assets"
CLIP = ASSETS / "cockatoo_360p.mp4"
FPS, SECONDS = 25, 2
KILOBITS = {(640, 360): 600, (1280, 720): 2000, (1920, 1080): 4000}  # a second
NOISE = 8  # grey levels


def main(ffmpeg: Annotated[str, typer.Option(metavar="PATH")] = "ffmpeg") -> None:
    for (width, height), rate in KILOBITS.items():
        made = ASSETS / f"camera_{height}p.mp4"
        subprocess.run(_command(ffmpeg, width, height, rate, made), check=True)
        print(f"{made.name}: {made.stat().st_size:,} bytes")


def _command(ffmpeg: str, width: int, height: int, rate: int, made: Path) -> list[str]:
    look = f"fps={FPS},scale={width}:{height}:flags=bicubic,noise=alls={NOISE}:allf=t"
    keys = ["-g", str(FPS * SECONDS), "-keyint_min", str(FPS * SECONDS), "-sc_threshold", "0", "-bf", "0"]
    rates = ["-b:v", f"{rate}k", "-minrate", f"{rate}k", "-maxrate", f"{rate}k", "-bufsize", f"{rate}k"]
    steady = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1", "-an"]
    read = ["-hide_banner", "-loglevel", "error", "-y", "-ss", "8", "-i", str(CLIP), "-t", str(SECONDS)]
    code = ["-c:v", "libx264", "-preset", "veryfast", "-profile:v", "high", "-pix_fmt", "yuv420p"]
    return [ffmpeg, *read, "-vf", look, *code, *keys, *rates, *steady, str(made)]
