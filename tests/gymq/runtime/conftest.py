"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest

from tests.support.permits import Script


@pytest.fixture
def script(connection):
    """The script on the test's server."""
    return Script(connection)
