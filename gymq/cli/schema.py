"""`gymq schema`: the JSON Schema of what gymq writes."""

from __future__ import annotations

import json

import click

from gymq.observe.terminal import say


@click.command()
@click.argument("what", metavar="rollout", type=click.Choice(["rollout"]))
def schema(what: str) -> None:
    """Print the JSON Schema of a finished rollout: of a line of --out, or of a consumer's `Rollout.json`.

    \b
    Examples:
      gymq schema rollout > rollout.schema.json
    """
    from gymq.wire.record_schema import rollout_schema

    say(json.dumps(rollout_schema(), indent=2))
