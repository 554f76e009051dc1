"""The chooser: a process that chooses an engine for a worker and leaves the choice in the cache.

The memory that all candidates need ends with it: a worker would keep it as long as it runs. A candidate that crashes
its process crashes this one. It ends with the worker that asked. `selection` decides which engine it is.
"""

import subprocess
from contextlib import suppress
from typing import Final

from pydantic import BaseModel

from coatstream.errors import EngineError
from coatstream.settings.model import BatchSettings, ModelSettings
from coatstream.settings.process import start_python

MAIN: Final = "from coatstream.engine.selection.chooser_main import main\nmain()"
PATIENCE: Final = 240.0  # seconds that choosing may take: below the eight minutes that a pod has for its start


class ChooserDied(EngineError):
    """The process that chooses died: this one might, too, if it tried the same."""


class Request(BaseModel):
    """What it is to do: one line on its stdin."""

    model: ModelSettings
    batch: BatchSettings


def choose_elsewhere(model: ModelSettings, batch: BatchSettings, *, patience: float = PATIENCE) -> bool:
    """Whether a choice is in the cache now. Where not, the same call fails here with the reason. Raises ChooserDied."""
    try:
        # Its stdin stays open for as long as this process lives: that is how it knows.
        with start_python(MAIN, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            if process.stdin is not None:  # it is a pipe
                with suppress(OSError):  # it may be gone already
                    process.stdin.write(Request(model=model, batch=batch).model_dump_json().encode() + b"\n")
            code = _code(process, patience)
    except OSError:  # no room for one more process
        return False
    if code < 0:
        raise ChooserDied(f"the process that chooses an engine died of signal {-code}")
    return code == 0


def _code(process: "subprocess.Popen[bytes]", patience: float) -> int:
    """Its exit code. Raises ChooserDied where it takes too long."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        raise ChooserDied(f"choosing an engine took more than {patience:g} s") from None
