"""A quarantine: `python -m gymq.alone ROLE` serves a role's suspects, one at a time, in a process that holds nothing else.

It is a worker like any other, but for Celery: it stands in the registry, and its death is judged and its mail handed back.
Since it was alone with its mail, that is a strike. `gymq.runtime.quarantine` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from typing import Any

import msgspec

from gymq import plugins
from gymq.errors import GymqError
from gymq.settings import Settings

#: The variable that holds the role's options, a JSON object.
OPTIONS = "GYMQ_ALONE_OPTIONS"

#: The variable that holds the number of the shard whose suspects it serves.
SHARD = "GYMQ_ALONE_SHARD"

#: Seconds without mail after which it ends: a suspect's next strike comes sooner, one and a half liveness limits later.
IDLE = 15.0

#: Exit code of one that could not begin: starting it again soon is of no use.
UNFIT = 78

#: Seconds between two looks at whether it is idle.
POLL_INTERVAL = 0.5

#: Liveness limits for which its loop may stand still; it counts as dead by then, and only the process's end makes room.
HUNG = 3.0


async def live(actors: list[Any], settings: Settings) -> None:
    """Run actors alone until there is no mail for them; asked to end, they hand back what they hold, which is no strike.

    Args:
        actors: made, not yet begun.
        settings: theirs.
    """

    def stop() -> None:
        for actor in actors:
            actor.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    for actor in actors:
        actor.isolate()
    lives = {asyncio.create_task(actor.main()) for actor in actors}
    busy, taken = time.monotonic(), -1
    while lives:
        # Of C, so that it ends even a process whose interpreter is held.
        faulthandler.dump_traceback_later(HUNG * settings.liveness + POLL_INTERVAL, exit=True)
        stats = [actor.stats() for actor in actors]
        if sum(one["held"] for one in stats) or sum(one["taken"] for one in stats) != taken:
            busy, taken = time.monotonic(), sum(one["taken"] for one in stats)
        if time.monotonic() - busy > IDLE:
            stop()
        done, lives = await asyncio.wait(lives, timeout=POLL_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
        for life in done:
            life.result()


def main(role: str) -> None:
    """Serve a role's suspects, and end the process whatever threads of tools still do.

    Args:
        role: its name.
    """
    actors: list[Any] = []
    well = False
    try:
        settings = Settings.from_environment().at(int(os.environ.pop(SHARD, "0")))
        options = msgspec.json.decode(os.environ.pop(OPTIONS, "{}"))
        actors = [plugins.load(plugins.ROLES, role)(settings, options)]
        asyncio.run(live(actors, settings))
        well = True
    except GymqError as error:
        print(f"gymq: the {role} quarantine ended: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    begun = any(actor.worker for actor in actors)
    os._exit(0 if well else 1 if begun else UNFIT)


if __name__ == "__main__":
    main(sys.argv[1])
