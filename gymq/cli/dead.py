"""`gymq dead`: calls that killed their process again and again; look at them, try them again, forget them."""

from __future__ import annotations

import time
from typing import Any

import click

from gymq.cli.options import redis_options
from gymq.cli.shards import with_shards
from gymq.errors import UsageError
from gymq.observe.terminal import say
from gymq.settings import Settings
from gymq.wire.ids import place


@click.group()
def dead() -> None:
    """List, show, replay or drop dead letters: calls that killed their process three times though it ran nothing else.

    \b
    Examples:
      gymq dead list
      gymq dead show try1.17.0:3:0
      gymq dead replay try1.17.0:3:0
      gymq dead drop --run try1
    """


@dead.command("list")
@redis_options
@click.option("--run", metavar="RUN", help="Only those of this run.")
def show_all(settings: Settings, run: str | None) -> None:
    """List the dead letters, oldest first.

    \b
    Examples:
      gymq dead list --run try1
    """
    from gymq.cli.table import make_table, show
    from gymq.ops.dead_letters import list_letters

    listed = with_shards(settings, lambda shards: list_letters(shards, run))
    table = make_table("id", "mailbox", "kind", "name", ">deaths", ">alone", "when")
    for letter in (entry.letter for entry in listed):
        counts = str(letter.deaths), str(letter.strikes)
        table.add_row(letter.id, letter.mailbox, letter.kind, letter.name, *counts, _when(letter.at))
    show(table if listed else "no dead letters")


@dead.command("show")
@click.argument("id", metavar="ID")
@redis_options
def show_one(id: str, settings: Settings) -> None:
    """Show the dead letter ID as JSON: what was called with what, the task, the messages if they are still there.

    \b
    Examples:
      gymq dead show try1.17.0:3:0
    """
    import msgspec

    from gymq.ops.dead_letters import find_letter, rollout_messages

    async def read(shards: Any) -> Any:
        stored = await find_letter(shards, id)
        return stored.letter, await rollout_messages(stored)

    letter, there = with_shards(settings, read)
    shown = {
        "id": letter.id,
        "run": letter.run,
        "rollout": place(letter.rollout),
        "role": letter.role,
        "mailbox": letter.mailbox,
        "kind": letter.kind,
        "name": letter.name,
        "deaths": letter.deaths,
        "deaths_alone": letter.strikes,
        "when": _when(letter.at),
        "last_worker": letter.worker,
    }
    call = letter.call
    if call is not None:
        shown["arguments"] = _json(call.arguments)
        shown["state"] = msgspec.msgpack.decode(call.state) if call.state is not None else None
    if letter.task:
        task = letter.decode_task()
        shown["task"] = {
            "id": task.id,
            "environment": task.environment,
            "messages": [msgspec.Raw(turn) for turn in task.encoded],
            "fields": msgspec.Raw(task.fields),
            "sampling": msgspec.Raw(task.sampling),
            "tools": msgspec.Raw(task.tools or b"null"),
        }
    shown["config"] = msgspec.Raw(letter.config or b"null")
    shown["messages"] = [msgspec.Raw(message) for message in there] or "gone with the rollout; the sinks have them"
    say(msgspec.json.format(msgspec.json.encode(shown, enc_hook=repr), indent=2).decode())


@dead.command()
@click.argument("id", metavar="ID")
@redis_options
@click.option("--run", metavar="NAME", help="The run that gets it, new or from an earlier replay.  [default: RUN-replay]")
def replay(id: str, settings: Settings, run: str | None) -> None:
    """Enqueue the task of dead letter ID again, in a run of its own with the same settings, one sample.

    \b
    Examples:
      gymq dead replay try1.17.0:3:0
      gymq dead replay try1.17.0:3:0 --run mended
    """
    from gymq.ops.dead_letters import replay_letter

    name, new = with_shards(settings, lambda shards: replay_letter(shards, id, run))
    what = "enqueued" if new else "was enqueued before; nothing was done"
    say(f"run {name}: the task of {id} {what}; `gymq sink jsonl --run {name} --out OUT` writes the rollout")


@dead.command()
@click.argument("id", metavar="[ID]", required=False)
@redis_options
@click.option("--run", metavar="RUN", help="All of this run.")
@click.option("--all", "every", is_flag=True, help="All there are.")
def drop(id: str | None, settings: Settings, run: str | None, every: bool) -> None:
    """Forget dead letter ID, or those of a run, or all.

    \b
    Examples:
      gymq dead drop try1.17.0:3:0
      gymq dead drop --run try1
      gymq dead drop --all
    """
    from gymq.ops.dead_letters import drop_letters, find_letter, list_letters

    if (id is not None) + (run is not None) + every != 1:
        raise UsageError("gymq dead drop: name an ID, --run RUN or --all, and one of them only")

    async def forget(shards: Any) -> int:
        if id is not None:
            await find_letter(shards, id)
        return await drop_letters([one for one in await list_letters(shards, run) if id in (None, one.letter.id)])

    gone = with_shards(settings, forget)
    say(f"{gone} dead letter{'s' * (gone != 1)} dropped")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _json(text: str) -> Any:
    """Return a tool call's arguments, decoded if they are JSON."""
    import msgspec

    try:
        return msgspec.json.decode(text) if text else None
    except msgspec.DecodeError:
        return text
