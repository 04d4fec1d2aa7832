"""`gymq status`, `gymq rm`: look at runs, forget them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from gymq.cli.options import redis_options
from gymq.cli.shards import with_shards
from gymq.observe.terminal import say
from gymq.settings import Settings

if TYPE_CHECKING:
    from gymq.ops.status import Overview
    from gymq.store.run_status import RunStatus
    from gymq.wire.pricing import Prices


@click.command()
@click.argument("run", required=False, metavar="[RUN]")
@redis_options
@click.option("--prices", metavar="P.yaml", help="What tokens cost; of one RUN.  [default: what the run was given]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def status(run: str | None, settings: Settings, prices: str | None, as_json: bool) -> None:
    """Show all runs, or one RUN: how far each is, what it waits for, who is alive, and what is missing.

    "Time" is where the calls of the last minute spent theirs, those of all runs together.
    Of one RUN it shows the tokens of each model too, of rollouts that have ended, and what they cost.

    \b
    Examples:
      gymq status
      gymq status try1 --json
      gymq status try1 --prices prices.yaml
      gymq status --of rollouts.jsonl
    """
    import msgspec

    from gymq.ops.status import overview
    from gymq.wire.pricing import Prices

    table = None if prices is None else Prices.read(prices)
    state = with_shards(settings, lambda shards: overview(shards, run))
    if as_json:
        say(msgspec.json.encode(state).decode())
    else:
        _show(state)
    if run is not None and not as_json:
        _show_tokens(state.runs[0], table)


def _show_tokens(run: RunStatus, prices: Prices | None) -> None:
    from gymq.cli.report import tokens_table
    from gymq.cli.table import show

    if run.tokens:
        show("", tokens_table(run.tokens, prices or run.config.prices))


def _show(state: Overview) -> None:
    from gymq.cli.table import make_table, show
    from gymq.ops.bottleneck import clock

    runs = make_table("run", "state", ">rows", ">rollouts", ">in flight", "ended", "unread")
    for run in state.runs:
        ended = ", ".join(f"{status} {count}" for status, count in run.by_status.items()) or "-"
        unread = ", ".join(f"{name} {count}" for name, count in run.unread.items()) or "no consumers"
        runs.add_row(run.config.name, run.state, str(run.rows), f"{run.ended}/{run.total}", str(run.live), ended, unread)
    show(runs if state.runs else "no runs")
    for name, found in state.waits.items():
        show("", f"{name} waits for {found.words}")
    show(*_time_lines(state))
    workers = ", ".join(f"{role} {count}" for role, count in state.workers.items()) or "none"
    starting = ", ".join(f"{name} ({clock(seconds)} so far)" for name, seconds in state.starting.items())
    show("", f"workers alive: {workers}" + (f"; starting: {starting}" if starting else ""))
    boxes = make_table("mailbox", ">waiting", ">oldest", ">taken", ">workers")
    for box in state.mailboxes:
        oldest = clock(box.oldest) if box.oldest else "-"
        boxes.add_row(box.name, str(box.waiting), oldest, str(box.taken), str(box.workers))
    if state.mailboxes:
        show("", boxes)
    if state.weights:
        versions = make_table("model", ">weights", "workers have")
        for model in state.weights:
            had = Counter(str(replica.version) for replica in model.replicas)
            have = ", ".join(f"{version}: {count}" for version, count in sorted(had.items())) or "-"
            versions.add_row(model.model, str(model.wanted.version) if model.wanted else "-", have)
        show("", versions)
    if state.loads:
        loads = make_table("model worker", ">running", ">waiting", ">kv cache", ">prefix hits", ">tokens/s")
        for worker, load in state.loads.items():
            numbers = [f"{load.get(name, 0):.0f}" for name in ("running", "waiting")]
            shares = [f"{load.get(name, 0):.0%}" for name in ("kv_cache", "prefix_hits")]
            loads.add_row(worker, *numbers, *shares, f"{load.get('tokens_per_second', 0):,.0f}")
        show("", loads)
    if state.dead:
        show("", f"dead letters: {state.dead}; `gymq dead list` shows them")
    show(*[f"warning: {warning}" for warning in state.warnings])


def _time_lines(state: Overview) -> list[str]:
    """Return where the time of the last minute went, and what hindered the requests to models."""
    from gymq.ops.bottleneck import limit_words

    activity, total = state.activity, sum(state.seconds.values())
    lines: list[str] = []
    if total:
        shares = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in state.seconds.items())
        lines.append(f"time: {shares}")
    hindered = {"HTTP 429": activity.refused, "other errors": activity.errors, "calls sent again": activity.resent}
    if any(hindered.values()):
        newest = f"; the newest: {activity.fault}" if activity.fault else ""
        lines.append("last minute: " + ", ".join(f"{what} {count}" for what, count in hindered.items()) + newest)
    lines += [f"rate limit of {limit_words(limit)}" for limit in state.limits if limit.waiting or limit.learned is not None]
    return ["", *lines] if lines else []


@click.command()
@click.argument("run", metavar="RUN")
@redis_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(run: str, settings: Settings, yes: bool) -> None:
    """Forget a RUN and all that Redis holds of it, finished rollouts that no sink has written too.

    \b
    Examples:
      gymq rm try1
      gymq rm try1 --yes
    """

    status = with_shards(settings, lambda shards: shards.status(run))
    if not yes:
        unread = max(status.unread.values(), default=status.ended)
        lost = f"{status.total - status.ended} rollouts have not ended, {unread} finished ones were not read"
        click.confirm(f"run {run} is {status.state}: {lost}. Remove it?", abort=True)
    with_shards(settings, lambda shards: shards.remove(run))
    say(f"run {run}: removed")
