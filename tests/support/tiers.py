"""Parameter sets that only the larger suites run: `parametrize("role", ["agent", *slow("model"), *heavy("resource")])`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings


def slow(*values: Any) -> Iterable[Any]:
    """Mark parameter sets as slow: `make test` leaves them out."""
    return [_marked(value, pytest.mark.slow) for value in values]


def heavy(*values: Any) -> Iterable[Any]:
    """Mark parameter sets as heavy: only `make test-all` runs them."""
    return [_marked(value, pytest.mark.heavy) for value in values]


def _marked(value: Any, mark: pytest.MarkDecorator) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=mark)


def examples(full: int) -> int:
    """Return how many examples a Hypothesis test draws under the profile loaded, of those it draws under the full one."""
    return max(3, full * settings.default.max_examples // 100)
