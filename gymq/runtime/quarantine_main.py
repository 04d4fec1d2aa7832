"""A quarantine: `python -m gymq.runtime.quarantine_main ROLE` serves suspects, one at a time, and holds nothing else.

It is a worker like any other, but for Celery: it stands in the registry, and its death is judged and its mail handed back.
Since it was alone with its mail, that is a strike. `gymq.runtime.quarantine` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import time

import msgspec

from gymq import plugins
from gymq.errors import GymqError
from gymq.observe import logs
from gymq.runtime import interpreter
from gymq.runtime.actor import Actor
from gymq.runtime.quarantine import OPTIONS, SHARD, UNFIT
from gymq.settings import Settings

log = logging.getLogger(__name__)

#: Seconds without mail after which it ends: a suspect's next strike comes sooner, one and a half liveness limits later.
IDLE = 15.0

#: Seconds between two looks at whether it is idle.
POLL_INTERVAL = 0.5

#: Liveness limits for which its loop may stand still: it counts as dead by then, and only the process's end makes room.
HUNG = 3.0


async def live(actor: Actor) -> None:
    """Run a quarantine's actor until no mail comes; asked to end, it hands back what it holds, which is no strike.

    Args:
        actor: made for suspects only, not yet begun.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, actor.stop)
    life = asyncio.create_task(actor.main())
    busy, taken = time.monotonic(), -1
    while not life.done():
        # Of C, so that it ends even a process whose interpreter is held.
        faulthandler.dump_traceback_later(HUNG * actor.settings.liveness + POLL_INTERVAL, exit=True)
        stats = actor.stats()
        if stats["held"] or stats["taken"] != taken:
            busy, taken = time.monotonic(), stats["taken"]
        if time.monotonic() - busy > IDLE:
            actor.stop()
        await asyncio.wait([life], timeout=POLL_INTERVAL)
    life.result()


def main(role: str) -> None:
    """Serve a role's suspects, and end the process whatever threads of tools still do.

    Args:
        role: its name.
    """
    actor: Actor | None = None
    well = False
    try:
        settings = Settings.from_environment().at(int(os.environ.pop(SHARD, "0")))
        logs.configure(settings)
        logs.identify(f"{role} quarantine")
        options = msgspec.json.decode(os.environ.pop(OPTIONS, "{}"))
        actor = plugins.load(plugins.ROLES, role)(settings, options, suspects_only=True)
        interpreter.tune()
        asyncio.run(live(actor))
        well = True
    except GymqError as error:
        log.error("ended: %s", error)
    except BaseException:
        log.critical("a defect of gymq ends this quarantine", exc_info=True)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    begun = actor is not None and actor.worker
    os._exit(0 if well else 1 if begun else UNFIT)


if __name__ == "__main__":
    main(sys.argv[1])
