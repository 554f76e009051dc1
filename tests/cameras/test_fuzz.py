"""A second of random damage for what reads strangers' bytes; `python -m tests.cameras.fuzz KIND SECONDS` for longer."""

import pytest

from tests.cameras.fuzz import fuzz


@pytest.mark.parametrize("kind", ["parts", "pictures", "addresses"])
def test_damaged_input_is_read_or_refused(kind: str) -> None:
    inputs, _, _ = fuzz(kind, 1.0)

    assert inputs > 0
