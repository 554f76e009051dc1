"""The bars in their short form. On a busy machine shares and durations tell little, so they have slack here."""

import pytest

from tests.bars.doors import idle_connections
from tests.bars.entries import mixed_sizes, stranded
from tests.faults.findings import SLACK, Findings
from tests.faults.servers import KINDS, VALKEY
from tests.faults.stage import on_stage


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stranded_in_four_ways_while_workers_die_gets_one_outcome_each(kind: str) -> None:
    findings = Findings(slack=SLACK)

    with on_stage(kind, 1, findings, limit=120.0) as stage:
        stranded(stage, frame_count=2_000, kills=8)

    assert findings.failures == []


@pytest.mark.slow
def test_what_is_read_and_not_decoded_stays_under_the_bound_whatever_the_sizes() -> None:
    findings = Findings()

    mixed_sizes(findings, kind=VALKEY, entries=200, largest=32_000_000)

    assert findings.failures == []


@pytest.mark.slow
def test_idle_connections_by_the_thousand_cost_memory_and_log_next_to_nothing() -> None:
    findings = Findings()

    idle_connections(findings, kind=VALKEY, connections=1_000, seconds=15.0)

    assert [failure for failure in findings.failures if not failure.startswith("labels/s")] == []
