"""An update, worker by worker: for a while the last release and this tree share everything. `mixed` judges it."""

import pytest

from tests.faults import servers
from tests.faults.cases import run_quick
from tests.support.absence import missing
from tests.upgrade import release
from tests.upgrade.mixed import case

SEED = 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", servers.KINDS)
def test_workers_of_the_last_release_and_of_this_tree_lose_nothing_and_label_nothing_twice(kind: str) -> None:
    servers.binary(kind)
    try:
        mixed = case(release.last())
    except release.NotHere as error:
        missing(str(error))

    row = run_quick(mixed, kind, SEED)

    print(row)
    assert row.ok, str(row)
