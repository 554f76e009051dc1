"""`coatstream bench peers`: the same work through coatstream and through mosec, Ray Serve, LitServe and a naive loop.

Becomes bench/peers of the source tree: the peers need scripts and an environment of their own, which no package holds.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from coatstream.errors import ConfigError

SCRIPTS: Final = Path(__file__).parent / "peers"


def run_bench_peers(arguments: Sequence[str], *, scripts: Path = SCRIPTS) -> NoReturn:
    """Its exit code is 0 where all that was measured gave the reference's labels. Raises ConfigError."""
    if sys.platform != "linux":
        raise ConfigError("bench peers reads /proc to count all processes of a system: it runs on Linux only")
    if not (scripts / "__main__.py").is_file():
        raise ConfigError("bench peers needs the source tree (its folder bench/peers is in no package): run it there")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, str(scripts), *arguments])
