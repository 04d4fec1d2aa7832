"""Celery's part: the app with its task and queues, the steps of its workers, remote control and Flower.

`celery -A gymq` finds `app` here. The app is made when it is first asked for: making it reads the environment's settings,
and command lines and the broker's address are needed without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gymq.celery.application import app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    if name != "app":
        raise AttributeError(f"module 'gymq.celery' has no attribute {name!r}")
    from gymq.celery.application import app

    return app
