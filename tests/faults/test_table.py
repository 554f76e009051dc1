"""The table shows what was found, seed by seed and server by server, and hides no failure."""

import subprocess
import sys

from tests.faults.cases import Case, Row
from tests.faults.controls import Protocol
from tests.faults.findings import Findings
from tests.faults.servers import REDIS, VALKEY
from tests.faults.table import markdown

CASE = Case("F0", "nothing at all", "lost 0", print, quick=None, full={})


def row(findings: Findings, *, kind: str = VALKEY, seed: int = 1, protocol: Protocol | None = None) -> Row:
    stats, measured = findings.stats, frozenset(findings.measured)
    return Row(CASE, "full", kind, seed, 1.0, stats, measured, tuple(findings.failures), protocol)


def found(*, lost: int = 0, latency: float = 0.1) -> Findings:
    findings = Findings()
    findings.note("frames", 5000)
    findings.exactly("lost", lost, 0)
    findings.exactly("exit codes", [0], [0])
    findings.at_most("latency", latency, 0.5, " s")
    return findings


def test_a_line_holds_what_was_counted_and_measured_and_not_what_could_only_be_one_thing() -> None:
    text = markdown([row(found())], [])

    assert "| F0 | nothing at all | lost 0 | frames 5,000, lost 0, latency 0.1 s |" in text


def test_seeds_share_a_line_and_show_from_the_smallest_to_the_largest() -> None:
    text = markdown([row(found(latency=0.4), seed=2), row(found(), seed=3), row(found(latency=0.2), seed=4)], [])

    assert "| 3 seeds, frames 5,000, lost 0, latency 0.1 s to 0.4 s |" in text


def test_one_failure_among_many_is_said_first() -> None:
    text = markdown([row(found()), row(found(lost=3), seed=2)], [])

    assert "**1 of 2 failed**" in text
    assert "lost is 3 and must be 0" in text


def test_a_limit_that_is_not_kept_is_a_failure() -> None:
    findings = found(latency=0.6)

    assert findings.failures == ["latency is 0.6 s and must be at most 0.5 s"]


def test_servers_have_columns_of_their_own() -> None:
    text = markdown([row(found()), row(found(latency=0.3), kind=REDIS)], [])

    assert "| Valkey | Redis |" in text
    assert "latency 0.1 s | frames 5,000, lost 0, latency 0.3 s |" in text


def test_a_control_is_listed_with_what_it_did_wrong() -> None:
    text = markdown([row(found())], [row(found(lost=32), protocol=Protocol.ACK_FIRST)])

    assert "| ack, then publish | F0 | 32 lost (of 5,000 frames) |" in text


def test_the_command_runs_what_is_named_and_prints_the_table() -> None:
    command = [sys.executable, "-m", "tests.faults", "F7", "--server", VALKEY, "--size", "quick", "--seed", "7"]

    ran = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "| F7 | rubbish among good frames |" in ran.stdout


def test_a_test_that_is_not_there_is_said() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults", "F99"], capture_output=True, text=True, timeout=150, check=False
    )

    assert ran.returncode == 1
    assert "nothing to run" in ran.stderr
