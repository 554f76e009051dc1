"""Where reading begins: ages, dates, Unix seconds and entries, each as the id that comes before."""

from datetime import UTC, datetime

import pytest
from coatstream.errors import ConfigError
from coatstream.results.since import entry_before

NOW = 1764000000.0


@pytest.mark.parametrize(
    ("since", "entry"),
    [
        ("90s", "1763999909999"),
        ("2h", "1763992799999"),
        ("1d", "1763913599999"),
        ("1763999999.5", "1763999999499"),
        (1763999999.5, "1763999999499"),
        ("2025-11-24T16:00:00+00:00", "1763999999999"),
        (datetime(2025, 11, 24, 16, tzinfo=UTC), "1763999999999"),
    ],
)
def test_reading_begins_after_the_last_entry_before_that_moment(since: str | float | datetime, entry: str) -> None:
    assert entry_before(since, now=NOW) == f"{entry}-{2**64 - 1}"


def test_since_an_entry_is_after_that_entry() -> None:
    assert entry_before("1764000000000-3", now=NOW) == "1764000000000-3"


@pytest.mark.parametrize("since", ["yesterday", "-5m", "10 m", "", float("nan")])
def test_what_is_no_moment_is_refused_with_what_is(since: str | float) -> None:
    with pytest.raises(ConfigError, match="give an age such as 90s"):
        entry_before(since, now=NOW)
