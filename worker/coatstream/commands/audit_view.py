"""The books of a queue in words: the sum of all outcomes, and how full its dead letters are. Asks no server."""

from coatstream.queue.audit import Audit
from coatstream.settings.model import QueueSettings

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def sum_of(audit: Audit) -> str:
    """`10,000 added = 12 waiting + 8 in work + 9,950 labelled + 20 dropped + 10 dead`, and what is wrong with that."""
    lying = f"{audit.waiting:,} waiting + {audit.in_work:,} in work"
    if audit.base is None:
        return f"no worker has kept books yet; {lying}"
    outcomes = f"{audit.published:,} labelled + {audit.dropped:,} dropped + {audit.dead:,} dead"
    line = f"{audit.added:,} added = {lying} + {outcomes}"
    if audit.unaccounted < 0:
        seen = f" + {audit.trimmed:,} vanished" if audit.trimmed else ""
        return (
            f"{line}{seen} - {-audit.unaccounted:,} that were never added: the stream or its books were deleted or "
            "restored from elsewhere; the next worker to start opens the books anew"
        )
    if audit.gone:
        return (
            f"{line} + {audit.gone:,} vanished without an outcome "
            "(trimmed or deleted by another program: do not use MAXLEN on this stream)"
        )
    return line


def room_of(audit: Audit, limits: QueueSettings) -> str:
    """How many dead letters there are, and how full that makes their stream."""
    letters = f"{audit.letters:,} of {limits.dead_max_length:,} letters"
    size = f"{size_of(audit.dead_bytes)} of {size_of(limits.dead_max_bytes)}"
    return f"{letters}, {size}: {fullness(audit, limits):.0%} full"


def fullness(audit: Audit, limits: QueueSettings) -> float:
    """By letters or by bytes, whichever is nearer to its bound; 1 is full."""
    return max(audit.letters / limits.dead_max_length, audit.dead_bytes / limits.dead_max_bytes)


def losses_of(audit: Audit) -> str:
    """The dead letters that had to go, and what made them."""
    return (
        f"{audit.dead_dropped:,} dead letters had to go or lost their picture "
        "(queue.dead_max_length, queue.dead_max_bytes)"
    )


def size_of(count: int) -> str:
    """`800 B`, `12.1 KiB`, `1.0 GiB`."""
    size, units = float(count), iter(_UNITS)
    unit = next(units)
    while size >= 1024 and (larger := next(units, None)) is not None:
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
