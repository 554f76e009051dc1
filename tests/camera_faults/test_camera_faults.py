"""Each camera case at its quick size: what is promised of cameras holds. Everything is in `catalog`."""

from dataclasses import replace

import pytest

from tests.camera_faults import shares
from tests.camera_faults.catalog import CASES, Case, case_named, run_case
from tests.faults.servers import VALKEY

SEED = 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_promised_of_cameras_holds_under(case: Case) -> None:
    row = run_case(case, "quick", VALKEY, SEED)

    print(row)
    assert row.ok, str(row)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_harness_sees_workers_that_all_read_all_cameras() -> None:
    case = case_named("C4")
    unshared = replace(
        case,
        quick={**case.quick, "cameras": 2, "exclusive": False, "most": 2, "least": 1, "lease": 1.0},
    )

    row = run_case(unshared, "quick", VALKEY, SEED)

    print(row)
    [mingled] = [figure for figure in row.stats if figure.name == shares.MINGLED]
    assert not mingled.ok, str(row)
