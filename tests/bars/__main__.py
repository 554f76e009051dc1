"""`python -m tests.bars NAME`: one bar at full size; exit 1 where it is not kept.

connections  10,000 idle or half-open HTTP connections, 1,024 descriptors, 5 minutes (--seconds)
log          a log pipe that is never read, at full load, against one with a reader
sizes        2,000 entries of 1 kB to 64 MB, under the bound of bytes that are read ahead
stranding    entries stranded in each of four ways, while workers die
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

from tests.bars import doors, entries
from tests.faults import servers
from tests.faults.findings import Findings
from tests.faults.stage import on_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bars", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=["connections", "log", "sizes", "stranding"])
    parser.add_argument("--server", choices=servers.KINDS, default=servers.VALKEY)
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    findings, kind = Findings(), options.server
    bars: dict[str, Callable[..., None]] = {
        "connections": partial(doors.idle_connections, connections=10_000, seconds=options.seconds),
        "log": partial(doors.unread_log, frame_count=30_000, pairs=3),
        "sizes": partial(entries.mixed_sizes, entries=2_000, largest=64_000_000),
        "stranding": _stranding,
    }
    bars[options.name](findings, kind=kind)
    for name, value in findings.stats.items():
        print(f"{name:<32} {value}")
    for failure in findings.failures:
        print(f"NOT KEPT: {failure}")
    sys.exit(bool(findings.failures))


def _stranding(findings: Findings, *, kind: str) -> None:
    with on_stage(kind, 1, findings, limit=600.0) as stage:
        entries.stranded(stage, frame_count=20_000, kills=16)


if __name__ == "__main__":
    main()
