"""`gymq status`, `gymq rm`: look at runs, forget them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from gymq.cli.options import redis_options
from gymq.cli.shards import with_shards
from gymq.settings import Settings

if TYPE_CHECKING:
    from gymq.store.run_status import RunStatus
    from gymq.wire.pricing import Prices


@click.command()
@click.argument("run", required=False, metavar="[RUN]")
@redis_options
@click.option("--prices", metavar="P.yaml", help="What tokens cost; of one RUN.  [default: what the run was given]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def status(run: str | None, settings: Settings, prices: str | None, as_json: bool) -> None:
    """Show all runs, or one RUN: how far each is, what its consumers have not read, who is alive, and what is missing.

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
    found = with_shards(settings, lambda shards: overview(shards, run))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        _show(found)
    if run is not None and not as_json:
        _show_tokens(found.runs[0], table)


def _show_tokens(one: RunStatus, prices: Prices | None) -> None:
    from gymq.cli.report import tokens_table
    from gymq.cli.table import show

    if one.tokens:
        show("", tokens_table(one.tokens, prices or one.config.prices))


def _show(found: Any) -> None:
    from gymq.cli.table import make_table, show

    runs = make_table("run", "state", ">rows", ">rollouts", ">in flight", "ended", "unread")
    for one in found.runs:
        ended = ", ".join(f"{status} {count}" for status, count in one.by_status.items()) or "-"
        unread = ", ".join(f"{name} {count}" for name, count in one.unread.items()) or "no consumers"
        runs.add_row(one.config.name, one.state, str(one.rows), f"{one.ended}/{one.total}", str(one.live), ended, unread)
    show(runs if found.runs else "no runs")
    workers = ", ".join(f"{role} {count}" for role, count in found.workers.items()) or "none"
    show("", f"workers alive: {workers}")
    boxes = make_table("mailbox", ">waiting", ">taken", ">workers")
    for box in found.mailboxes:
        boxes.add_row(box.name, str(box.waiting), str(box.taken), str(box.workers))
    if found.mailboxes:
        show("", boxes)
    if found.weights:
        versions = make_table("model", ">weights", "workers have")
        for one in found.weights:
            had = Counter(str(replica.version) for replica in one.replicas)
            have = ", ".join(f"{version}: {count}" for version, count in sorted(had.items())) or "-"
            versions.add_row(one.model, str(one.wanted.version) if one.wanted else "-", have)
        show("", versions)
    if found.loads:
        loads = make_table("model worker", ">running", ">waiting", ">kv cache", ">prefix hits", ">tokens/s")
        for worker, load in found.loads.items():
            numbers = [f"{load.get(name, 0):.0f}" for name in ("running", "waiting")]
            shares = [f"{load.get(name, 0):.0%}" for name in ("kv_cache", "prefix_hits")]
            loads.add_row(worker, *numbers, *shares, f"{load.get('tokens_per_second', 0):,.0f}")
        show("", loads)
    if found.dead:
        show("", f"dead letters: {found.dead}; `gymq dead list` shows them")
    show(*[f"warning: {warning}" for warning in found.warnings])


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

    there: RunStatus = with_shards(settings, lambda shards: shards.status(run))
    if not yes:
        unread = max(there.unread.values(), default=there.ended)
        lost = f"{there.total - there.ended} rollouts have not ended, {unread} finished ones were not read"
        click.confirm(f"run {run} is {there.state}: {lost}. Remove it?", abort=True)
    with_shards(settings, lambda shards: shards.remove(run))
    click.echo(f"run {run}: removed")
