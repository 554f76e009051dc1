"""Processes that coatstream starts of itself: without the settings in the environment, and gone with their parent.

It stands in this room because engine, broker, cameras and the supervisor all need it, and because it must know which
variables are settings. Linux only, but for `start_python`.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Final

from coatstream.settings.keys import PREFIX

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_NAME: Final = 15
_CODE: Final = "import sys\nsys.path[:] = {path!r}\n{code}\n"


def start_python(
    code: str,
    *,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = None,
) -> "subprocess.Popen[bytes]":
    """Run `code` in a new interpreter that finds the modules that this one finds. Raises OSError.

    The search path is handed over, since the current folder may hold modules of our names. Variables that are settings
    are not: passwords may be among them, and `ps` shows a process's environment to its user. What it prints goes
    nowhere, since FFmpeg would write there what readers of labels would get.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return subprocess.Popen(  # noqa: S603  (ourselves)
        [sys.executable, "-c", _CODE.format(path=sys.path, code=code)],
        bufsize=0,
        env=inherited | dict(environment or {}),
        pass_fds=pass_fds,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


def end_with_parent(parent: int | None = None, *, by: signal.Signals = signal.SIGKILL) -> bool:
    """The kernel sends this process the signal `by` when the thread that started it ends, however stuck it is.

    Returns False where `parent` (a pid) had ended before this call: then no signal comes.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    return parent is None or os.getppid() == parent


def show_as(name: str) -> None:
    """The name that `top` shows of this process: the first 15 bytes count."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])
