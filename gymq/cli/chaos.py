"""`gymq chaos`: kill and stop workers of this machine, and see that nothing is lost."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import defaultdict
from typing import TYPE_CHECKING

import click

from gymq.cli.options import redis_options
from gymq.observe.terminal import say
from gymq.settings import Settings

if TYPE_CHECKING:
    from gymq.ops.fault_injection import FaultAction, InjectedFault

#: The faults, as the question to the user words them.
_FAULTS: tuple[tuple[FaultAction, str], ...] = (("kill", "kill"), ("stop", "stop for a while"))


@click.command()
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="Only workers of this role; may be repeated.")
@click.option("--faults", default="kill,stop", show_default=True, metavar="LIST", help="kill: SIGKILL. stop: SIGSTOP.")
@click.option("--every", type=click.FloatRange(min=0.1), default=1.5, show_default=True, metavar="SECONDS", help="On average.")
@click.option("--for", "seconds", type=click.FloatRange(min=0), metavar="SECONDS", help="How long.  [default: until Ctrl-C]")
@click.option("--seed", type=int, metavar="N", help="Who, when and how.  [default: a new one, printed]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_options
def chaos(
    roles: tuple[str, ...],
    faults: str,
    every: float,
    seconds: float | None,
    seed: int | None,
    yes: bool,
    settings: Settings,
) -> None:
    """Kill (-9) and stop (-STOP beyond the liveness limit, then -CONT) workers at random moments.

    Only workers of the given server that run on this machine as this user are hit, and that is all it does: what starts them
    again is your supervisor, or the `gymq run` that they belong to. A role that has no worker left waits for one.
    Each fault is one line; at the end there is a table of the time until what the victims held was answered.

    \b
    Examples:
      gymq chaos --of rollouts.jsonl --every 5 --for 60
      gymq chaos --role model --faults stop --seed 7 --yes
    """
    from gymq.cli.shards import with_shards
    from gymq.errors import GymqError, UsageError
    from gymq.ops.fault_injection import FaultInjector
    from gymq.ops.victims import victims

    kinds: list[FaultAction] = [kind for kind, _ in _FAULTS if kind in faults.split(",")]
    if not kinds or set(filter(None, faults.split(","))) - set(kinds):
        raise UsageError(f"--faults {faults!r}: use kill or stop, or both with a comma")
    candidates = with_shards(settings, lambda shards: victims(shards, roles))
    if not candidates:
        raise GymqError("no worker of this server runs on this machine as this user; `gymq status` shows the workers")
    for victim in candidates:
        say(f"{victim.role} {victim.pid} ({', '.join(victim.workers)})")
    if not yes:
        actions = " and ".join(action for kind, action in _FAULTS if kind in kinds)
        click.confirm(f"{actions} these, and those that take their place, every {every:g} s?", abort=True)
    seed = random.randrange(1 << 32) if seed is None else seed
    say(f"seed {seed}")

    def tell(fault: InjectedFault) -> None:
        effect = f"held {len(fault.held)}"
        if fault.held and fault.recovered is not None:
            effect += f", all answered {fault.recovered:.1f} s after"
        say(f"{fault.kind} {fault.role} {fault.pid}: {effect}")

    async def work() -> list[InjectedFault]:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        if seconds is not None:
            loop.call_later(seconds, stop.set)
        return await FaultInjector(settings, seed=seed, every=every, kinds=kinds, roles=roles, tell=tell).run(stop)

    _report(asyncio.run(work()))


def _report(faults: list[InjectedFault]) -> None:
    from gymq.cli.table import make_table, show

    groups: dict[tuple[str, str], list[InjectedFault]] = defaultdict(list)
    for fault in faults:
        groups[fault.role, fault.kind].append(fault)
    table = make_table("role", "fault", ">times", ">held", ">median s", ">worst s", ">open")
    for (role, kind), group in sorted(groups.items()):
        delays = sorted(fault.recovered for fault in group if fault.held and fault.recovered is not None)
        median, worst = (f"{delays[len(delays) // 2]:.1f}", f"{delays[-1]:.1f}") if delays else ("-", "-")
        unrecovered = sum(fault.recovered is None for fault in group)
        table.add_row(role, kind, str(len(group)), str(sum(len(f.held) for f in group)), median, worst, str(unrecovered))
    show(table)
