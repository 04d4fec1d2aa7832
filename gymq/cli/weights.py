"""`gymq weights`: give a model's workers other weights, and see which worker has which."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from gymq.cli.options import redis_options
from gymq.cli.shards import with_shards
from gymq.observe.terminal import say
from gymq.settings import Settings


@click.group()
def weights() -> None:
    """Give a model's workers other weights while they serve; see who has which.

    \b
    Examples:
      gymq weights publish --model vllm:policy --version 12 --path /models/step12
      gymq weights status
      gymq weights forget --model vllm:policy
    """


@weights.command("publish")
@click.option("--model", required=True, metavar="SPEC", help="The model, as its workers name it.")
@click.option("--version", type=int, required=True, metavar="V", help="The policy version: above that of all before.")
@click.option("--path", required=True, metavar="DIR", help="The weights, where the workers find them.")
@click.option(
    "--mode",
    type=click.Choice(["keep", "wait", "abort"]),
    default="keep",
    help="Calls in flight stand still and go on, are finished first, or are begun again.  [default: keep]",
)
@click.option("--rolling/--at-once", default=True, help="One worker after the other, or all together.  [default: rolling]")
@click.option(
    "--wait", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Wait until all have taken them, S s at most."
)
@redis_options
def publish(model: str, version: int, path: str, mode: Any, rolling: bool, wait: float | None, settings: Settings) -> None:
    """Let all workers of a model sample with the weights in DIR; no conversation is lost by it.

    What is wanted is written down: workers that start later load it before their first call. A worker that cannot load it
    ends. With --wait, exit code 1: some could not, or have not in time.

    \b
    Examples:
      gymq weights publish --model vllm:policy --version 12 --path /models/step12
      gymq weights publish --model vllm:policy --version 13 --path /models/step13 --mode abort --at-once --wait 120
    """
    from gymq.client.publish_weights import publish_and_see
    from gymq.client.replica_status import check_loaded

    wanted, found = asyncio.run(publish_and_see(settings, model, version, path, mode=mode, rolling=rolling, wait=wait or 0.0))
    say(f"model {model}: version {version} is wanted, from {wanted.path}")
    if wait is None:
        return
    for one in found.replicas:
        if one.version is not None and one not in found.behind:
            say(f"{one.name}: took it")
    for failure in found.failed:
        say(f"{failure.name}: could not: {failure.error}")
    check_loaded(found, wanted)


@weights.command()
@click.option("--model", metavar="SPEC", help="Only this one.  [default: all]")
@redis_options
@click.option("--json", "as_json", is_flag=True, help="One JSON list, for programs.")
def status(model: str | None, settings: Settings, as_json: bool) -> None:
    """Show which weights are wanted, which workers have them, and which could not load them.

    \b
    Examples:
      gymq weights status
      gymq weights status --model vllm:policy --json
    """
    import msgspec

    from gymq.client.replica_status import weights_status

    found = with_shards(settings, lambda shards: weights_status(shards, model))
    if as_json:
        say(msgspec.json.encode(found).decode())
    else:
        _show(found)


def _show(found: Any) -> None:
    from gymq.cli.table import make_table, show

    if not found:
        show("no weights were published, and no worker takes any")
    for one in found:
        wanted = one.wanted
        if wanted is None:
            show(f"model {one.model}: no weights were published")
        else:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wanted.published))
            how = f"{wanted.mode}, {'rolling' if wanted.rolling else 'at once'}"
            show(f"model {one.model}: version {wanted.version} of {when} from {wanted.path} ({how})")
        table = make_table("worker", ">version", "")
        for replica in one.replicas:
            version = "takes none" if replica.version is None else str(replica.version)
            table.add_row(replica.name, version, f"loads {replica.loading}" if replica.loading is not None else "")
        for failure in one.failed:
            table.add_row(failure.name, str(failure.version), f"left: {failure.error}")
        if one.replicas or one.failed:
            show(table)


@weights.command()
@click.option("--model", required=True, metavar="SPEC", help="The model, as its workers name it.")
@redis_options
def forget(model: str, settings: Settings) -> None:
    """Forget what was published of a model, so that versions may begin again; workers keep what they have.

    \b
    Examples:
      gymq weights forget --model vllm:policy
    """
    from gymq.client.publish_weights import forget as drop
    from gymq.errors import UnknownName

    if not with_shards(settings, lambda shards: drop(shards, model)):
        raise UnknownName(f"weights: none were published of model {model!r}; `gymq weights status` lists them")
    say(f"model {model}: forgotten")
