"""The console script, and `python -m coatstream`. Imports what is heavy only once signals are honoured."""

import os
import signal
import sys
from typing import Final, NoReturn

STOPS: Final = ("SIGTERM", "SIGINT", "SIGHUP")  # Windows has no SIGHUP


def main() -> None:
    """Run the command line.

    Loading the modules takes a second. As a container's first process a worker would miss a SIGTERM in it, since the
    kernel drops signals without a handler there. Nothing has been read by then, so such a signal ends it with 0.
    """
    if sys.argv[1:2] == ["run"]:
        for stop in (getattr(signal, name) for name in STOPS if hasattr(signal, name)):
            if signal.getsignal(stop) is not signal.SIG_IGN:
                signal.signal(stop, _leave)
    from coatstream.cli import main as run

    run()


def _leave(*_: object) -> NoReturn:
    os._exit(0)


if __name__ == "__main__":
    main()
