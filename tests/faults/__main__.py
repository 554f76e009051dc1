"""`python -m tests.faults`: every fault test at full size, on every server that is installed, and a table in the end.

python -m tests.faults                         all of it, about an hour
python -m tests.faults F1 F30 --seeds 5        two of them, with five seeds each
python -m tests.faults F6 --server redis --seed 12 --size quick
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.faults import servers
from tests.faults.cases import Case, Row, run_case, run_full, run_quick
from tests.faults.catalog import CASES, CONTROLS
from tests.faults.table import markdown, print_table


def main() -> None:
    options = _parser().parse_args()
    kinds = [kind for kind in servers.KINDS if options.server in (kind, "all") and servers.available(kind)]
    chosen = [case for case in CASES if not options.names or case.name in options.names]
    if not kinds or not chosen:
        sys.exit(f"nothing to run: servers here are {', '.join(filter(servers.available, servers.KINDS))}, "
                 f"tests are {', '.join(case.name for case in CASES)}")  # fmt: skip
    rows = [_told(row) for case in chosen for row in _runs(case, kinds, options)]
    controls = [] if options.no_controls else [_told(row) for row in _control_runs(chosen, options.seed)]
    print_table(rows, controls)
    text = markdown(rows, controls)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, "utf-8")
    sys.exit(int(not all(row.ok for row in rows) or any(row.ok for row in controls)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="TEST", help="F1, F2, ...; all of them if none is named")
    parser.add_argument("--server", choices=[*servers.KINDS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=0, help="how many; 0 = each test's own number, mostly 1")
    parser.add_argument("--size", choices=["quick", "full"], default="full")
    parser.add_argument("--no-controls", action="store_true", help="leave out the bad protocols, which must fail")
    parser.add_argument("--markdown", type=Path, help="write the table for docs/faults.md into this file, too")
    return parser


def _runs(case: Case, kinds: list[str], options: argparse.Namespace) -> Iterator[Row]:
    quick = options.size == "quick"
    if quick and case.quick is None:
        return
    for kind in kinds:
        if kind in case.kinds:
            seeds = options.seeds or (1 if quick else case.seeds)
            for seed in range(options.seed, options.seed + seeds):
                yield run_quick(case, kind, seed) if quick else run_full(case, kind, seed)


def _control_runs(chosen: list[Case], seed: int) -> Iterator[Row]:
    cases = {case.name: case for case in chosen}
    for control in CONTROLS:
        if control.case in cases:
            yield run_case(
                cases[control.case],
                servers.VALKEY,
                seed,
                control.size,
                limit=control.limit,
                protocol=control.protocol,
            )


def _told(row: Row) -> Row:
    print(f"{row}, {row.seconds:.0f} s", flush=True)
    return row


if __name__ == "__main__":
    main()
