"""Where reading begins: a moment, an age or an entry, as the id of the entry before it. Asks no server."""

import re
from datetime import datetime
from typing import Final

from coatstream.errors import ConfigError

_ENTRY: Final = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_AGO: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def entry_before(since: str | float | datetime, *, now: float) -> str:
    """The id that comes before all entries since then; an entry's own id comes before those that follow it.

    `since` is Unix seconds, a date and time (local where it names no zone; also as ISO text), an age (`10m`), or the id
    of an entry. Ids are moments of the server's clock. Raises ConfigError.
    """
    if isinstance(since, str) and _ENTRY.fullmatch(since):
        return since
    try:
        moment = max(0, int(_moment(since, now) * 1000))
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"since {str(since)[:80]!r}: give an age such as 90s, 10m, 2h or 1d, a date and time such as "
            "2026-11-29T14:00, Unix seconds, or the id of an entry"
        ) from None
    return f"{max(1, moment) - 1}-{2**64 - 1}"


def _moment(since: str | float | datetime, now: float) -> float:
    """Unix seconds. Raises ValueError, OverflowError and OSError."""
    if isinstance(since, datetime):
        return since.timestamp()
    if not isinstance(since, str):
        return float(since)
    if ago := _AGO.fullmatch(since):
        return now - float(ago[1]) * _UNITS[ago[2]]
    return float(since) if _SECONDS.fullmatch(since) else datetime.fromisoformat(since).timestamp()
