"""The chooser: a process that chooses an engine and leaves what it chose in the cache, for whoever asked.

What all the candidates need is gone with it: memory that a worker would keep for as long as it runs. And where a
candidate takes its process along, that is this one. It ends with whoever asked. Which engine it is to be is
`selection`'s business.
"""

import subprocess
from contextlib import suppress
from typing import Final

from pydantic import BaseModel

from coatstream.errors import EngineError
from coatstream.settings.model import BatchSettings, ModelSettings
from coatstream.settings.process import start_python

_MAIN: Final = "from coatstream.engine.selection.chooser_main import main\nmain()"
_PATIENCE: Final = 600.0  # seconds that choosing may take


class ChooserDied(EngineError):
    """The process that chooses did not live to say how it went: so might this one, if it tried the same."""


class Request(BaseModel):
    """What it is told, a line on its stdin."""

    model: ModelSettings
    batch: BatchSettings


def choose_elsewhere(model: ModelSettings, batch: BatchSettings, *, patience: float = _PATIENCE) -> bool:
    """Whether a choice is in the cache now. Where not, the same fails here, and says why. Raises ChooserDied."""
    try:
        # Its stdin stays open for as long as this process lives: that is how it knows.
        with start_python(_MAIN, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
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
