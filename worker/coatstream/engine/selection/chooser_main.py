"""The process that chooses an engine: reads one request, leaves the choice in the cache, ends."""

import os
import sys
import threading
from typing import NoReturn

from coatstream.engine.selection.chooser import Request
from coatstream.engine.selection.selection import choose
from coatstream.errors import EngineError


def main() -> NoReturn:
    """Choose, and end at once, without the destructors of three libraries."""
    code = 1
    try:
        asked = Request.model_validate_json(sys.stdin.buffer.readline())
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        code = _chosen(asked)
    finally:
        os._exit(code)


def _end_with_parent() -> None:
    """The worker that asked may be killed while it waits; then its end of the pipe is closed."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _chosen(asked: Request) -> int:
    try:
        choose(asked.model, asked.batch)
    except EngineError:  # the worker that asked tries the same and reports it
        return 1
    return 0
