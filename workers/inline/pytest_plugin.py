"""The fixture `gymq_play`: plays a rollout of an environment in a test, without a server.

pytest imports this module at each start, in every project of the installation: it must import nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from gymq import Rollout


def play(environment: Any, row: Any, model: Any = "scripted", **options: Any) -> Rollout:
    """Play one rollout and return it.

    Args:
        environment, model, options: as of `Player`.
        row: a row, as of a file of tasks.
    """
    from gymq_workers.inline.player import Player

    from gymq.aio import run_blocking

    return run_blocking(Player(environment, model, **options).play(row))


@pytest.fixture
def gymq_play() -> Callable[..., Rollout]:
    """Play one rollout and return it: `gymq_play(Dice, {"prompt": "Roll."}, ["I roll.", "It is a 4."])`."""
    return play
