"""How busy the machine is, for tests that hold a bound in seconds."""

from pathlib import Path

LOADAVG = Path("/proc/loadavg")


def slack() -> float:
    """Seconds that are allowed besides a bound: ten where other programs want the cores, too; none where the test is
    alone, as when the bound was measured.
    """
    busy = LOADAVG.exists() and float(LOADAVG.read_text().split()[0]) > 2
    return 10.0 if busy else 0.0
