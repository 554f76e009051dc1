"""Each fault test at its quick size: what the workers promise holds under it. Everything is in `catalog`."""

import pytest

from tests.faults import servers
from tests.faults.cases import Case, run_quick
from tests.faults.catalog import CASES

SEED = 1

QUICK = [
    pytest.param(case, kind, id=f"{case.name}-{kind}")
    for case in CASES
    if case.quick is not None
    for kind in case.quick_kinds
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("case", "kind"), QUICK)
def test_what_is_promised_holds_under(case: Case, kind: str) -> None:
    servers.binary(kind)

    row = run_quick(case, kind, SEED)

    print(row)
    assert row.ok, str(row)
