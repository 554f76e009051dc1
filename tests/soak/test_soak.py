"""The soak in its short form: a minute and a half in which everything goes wrong once."""

from pathlib import Path

import pytest

from tests.faults.findings import SLACK, Findings
from tests.faults.servers import VALKEY
from tests.soak.soak import soak


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ninety_seconds_of_everything_at_once_lose_nothing(tmp_path: Path) -> None:
    findings = Findings(slack=SLACK)

    soak(findings, tmp_path, seconds=90, kind=VALKEY, model={}, rate=5.0)

    assert findings.failures == []
