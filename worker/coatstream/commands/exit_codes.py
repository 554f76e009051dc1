"""How a command ends: its exit code, and one line on stderr for each thing that is wrong.

0 done; 1 a fault found, or a bug; 2 wrong usage or settings; 3 the model cannot be loaded; 4 Redis cannot be reached at
start. No line holds a traceback or a credential.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum

import typer

from coatstream.errors import CoatstreamError, ConfigError, EngineError, RedisUnavailable, redact
from coatstream.settings.errors import SettingsError


class ExitCode(IntEnum):
    """The code of a process that ends."""

    DONE = 0
    FAULT = 1
    USAGE = 2
    MODEL = 3
    REDIS = 4


# typer has its own copy of click and does not export that copy's names; every click has this class in this place.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_INTERRUPTED = 130  # typer's own code for Ctrl-C


def exit_code(call: Callable[[], int | None]) -> int:
    """Call a command, or a worker in its own process; print what went wrong and return the exit code."""
    try:
        code = int(call() or ExitCode.DONE)
        return _report("interrupted", ExitCode.FAULT) if code == _INTERRUPTED else code
    except (SettingsError, ConfigError, _UsageError) as error:
        return _report(error, ExitCode.USAGE)
    except EngineError as error:
        return _report(error, ExitCode.MODEL)
    except RedisUnavailable as error:
        return _report(error, ExitCode.REDIS)
    except CoatstreamError as error:
        return _report(error, ExitCode.FAULT)
    except (KeyboardInterrupt, typer.Abort):
        return _report("interrupted", ExitCode.FAULT)
    except SystemExit as end:  # typer raises it for a closed pipe: `coatstream classify clip.mp4 | head`
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        discard_stdout()
        return ExitCode.DONE
    except OSError as error:
        return (
            _report(f"output cannot be written: {error.strerror}", ExitCode.FAULT)
            if _is_full(error)
            else report_bug(error)
        )
    except Exception as error:
        return report_bug(error)


def _is_full(error: OSError) -> bool:
    """Whether a disk, a quota or a file has no more room: no bug of ours."""
    return error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def report_bug(error: Exception) -> int:
    """Print that an exception is a bug, and return the exit code. Call it while the exception is handled."""
    if os.environ.get("COATSTREAM_LOG__LEVEL") == "debug":
        print(redact(traceback.format_exc()), file=sys.stderr)
    return _report(
        f"a bug in coatstream: {type(error).__name__}: {error} (COATSTREAM_LOG__LEVEL=debug shows where)",
        ExitCode.FAULT,
    )


def discard_stdout() -> None:
    """The reader of stdout has gone: drop what is still buffered, so that Python's own exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: object, code: ExitCode) -> int:
    if isinstance(error, _UsageError):
        error = _usage(error)
    for line in str(error).splitlines() or [type(error).__name__]:
        print(f"coatstream: {redact(line)}", file=sys.stderr)
    return code


def _usage(error: Exception) -> str:
    """What was wrong (its str() lacks the option's name), and where the right usage is."""
    said = str(getattr(error, "format_message", error.__str__)())
    context = getattr(error, "ctx", None)
    return f"{said.removesuffix('.')}; see `{context.command_path} --help`" if context else said
