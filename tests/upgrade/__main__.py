"""`python -m tests.upgrade`: workers of the last release and of this tree on one server, killed and restarted.

python -m tests.upgrade                              20,000 frames on every server that is installed
python -m tests.upgrade --size quick --server redis  as the test suite plays it
python -m tests.upgrade --from v1.2.0                against another release
"""

import argparse
import sys

from tests.faults import servers
from tests.faults.cases import Row, run_full, run_quick
from tests.faults.table import print_table
from tests.upgrade import release
from tests.upgrade.mixed import case


def main() -> None:
    options = _parser().parse_args()
    try:
        mixed = case(options.release)
    except release.NotHere as error:
        sys.exit(f"{error}; give a commit that this clone has: --from COMMIT")
    kinds = [kind for kind in servers.KINDS if options.server in (kind, "all") and servers.available(kind)]
    if not kinds:
        sys.exit(f"no {options.server} server on this machine")
    run = run_quick if options.size == "quick" else run_full
    rows = [_printed(run(mixed, kind, options.seed + n)) for kind in kinds for n in range(options.seeds)]
    print_table(rows, [])
    sys.exit(int(not all(row.ok for row in rows)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.upgrade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=["U1"], default="U1", help="there is only one")
    parser.add_argument("--from", dest="release", metavar="COMMIT", default=release.last(), help="default: %(default)s")
    parser.add_argument("--server", choices=[*servers.KINDS, "all"], default="all")
    parser.add_argument("--size", choices=["quick", "full"], default="full")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    return parser


def _printed(row: Row) -> Row:
    print(f"{row}, {row.seconds:.0f} s", flush=True)
    return row


if __name__ == "__main__":
    main()
