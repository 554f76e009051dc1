"""The harness sees a bad protocol: each control loses, doubles or buries frames under the faults of one test."""

import pytest

from tests.faults.cases import run_case
from tests.faults.catalog import CONTROLS, Control, case_named
from tests.faults.servers import VALKEY

SEED = 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{control.case}-{control.protocol.name.lower()}")
def test_the_harness_sees_that_this_protocol_is_bad(control: Control) -> None:
    case = case_named(control.case)

    row = run_case(case, VALKEY, SEED, control.size, limit=control.limit, protocol=control.protocol)

    print(row)
    assert int(row.stats[control.seen_in].replace(",", "")) > 0, str(row)
    assert not row.ok, str(row)
