"""What a user's machine may lack skips a test; what CI lacks is a failure, unless no package could bring it."""

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip with a reason at home, fail on CI."""
    if os.environ.get("CI"):
        pytest.fail(f"on CI this must be there: {reason}")
    pytest.skip(reason)


def incapable(reason: str) -> NoReturn:
    """Skip anywhere: this processor, or this card, cannot do it."""
    pytest.skip(reason)
