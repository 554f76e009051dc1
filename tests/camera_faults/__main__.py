"""`python -m tests.camera_faults`: every camera case, each figure beside its bar.

python -m tests.camera_faults                        all of it at full size, about 20 minutes
python -m tests.camera_faults C1 C3 --size quick     two of them, as the test suite plays them
python -m tests.camera_faults --server all --json rows.json --markdown table.md

C2, labels under three times too much work, is python -m bench overload.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from coatstream.commands.bench.report import machine

from tests.camera_faults.catalog import CASES, Row, run_case
from tests.faults import servers


def main() -> None:
    options = _parser().parse_args()
    kinds = [kind for kind in servers.KINDS if options.server in (kind, "all") and servers.available(kind)]
    chosen = [case for case in CASES if not options.names or case.name in options.names]
    if not kinds or not chosen:
        sys.exit(f"nothing to run: servers here are {', '.join(filter(servers.available, servers.KINDS))}, "
                 f"cases are {', '.join(case.name for case in CASES)}")  # fmt: skip
    rows = []
    for case in chosen:
        for kind in kinds:
            rows.append(run_case(case, options.size, kind, options.seed))
            print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps([row.document() for row in rows], indent=1) + "\n", "utf-8")
    if options.markdown:
        options.markdown.write_text(_markdown(rows), "utf-8")
    sys.exit(int(not all(row.ok for row in rows)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.camera_faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CASE", help="C1, C3, ...; all of them if none is named")
    parser.add_argument("--server", choices=[*servers.KINDS, "all"], default=servers.VALKEY)
    parser.add_argument("--size", choices=["quick", "full"], default="full")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--markdown", type=Path, help="write the table for docs/faults.md into this file")
    return parser


def _markdown(rows: Sequence[Row]) -> str:
    about = machine()
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}; {about['cpu']}, {about['cores']} cores, {about['os']}, "
        f"Python {about['python']}. `make camera-faults` makes this table again.",
        "",
        "| | case | server | figure | found | bar | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for figure in row.stats:
            verdict = ("held" if figure.ok else "**missed**") if figure.bar else ""
            lines.append(
                f"| {row.name} | {row.title} | {row.kind} | {figure.name} | {figure.value} | {figure.bar} | {verdict} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
