"""A look at a run's models before anything is started: does each answer, and does it take the key?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gymq import plugins
from gymq.errors import CallError, GymqError
from gymq.local.run_guard import HOPELESS
from gymq.local.run_options import RunOptions

#: Seconds to wait for a model that does not answer: a server that is being started needs them, a wrong address wastes them.
PATIENCE = 30.0

#: Seconds between two looks.
INTERVAL = 1.0


class ModelSilent(GymqError):
    """A model does not answer, so that no rollout can succeed."""

    exit_code = HOPELESS


async def probe_models(options: RunOptions, say: Callable[[str], None], patience: float = PATIENCE) -> None:
    """Wait until a run's models answer.

    Args:
        options: the run's options.
        say: called with a line for a person on each model with a defect.
        patience: seconds to wait.

    Raises:
        ModelSilent: a model does not answer.
    """
    models = {options.model: options.backend_options}
    if options.judge:
        models.setdefault(options.judge, options.judge_options)
    until = time.monotonic() + patience
    for spec, backend_options in models.items():
        waiting = False
        while True:
            try:
                complaint = await plugins.backend(spec, backend_options).probe()
            except CallError as silence:
                left = until - time.monotonic()
                if left <= 0:
                    remedy = "start it, or correct its address, and run the same command again; no rollout was begun"
                    raise ModelSilent(f"model {spec}: {silence}; {remedy}") from None
                if not waiting:
                    say(f"model {spec}: {silence}; waiting for it, {left:.0f} s at most")
                waiting = True
                await asyncio.sleep(INTERVAL)
                continue
            if complaint:
                say(f"model {spec}: {complaint}")
            break
