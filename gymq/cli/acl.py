"""`gymq acl`: the rights on Redis that a role needs."""

from __future__ import annotations

import click

from gymq.cli.options import redis_options
from gymq.observe.terminal import say
from gymq.ops.acl import ROLES
from gymq.settings import Settings


@click.command()
@click.argument("role", type=click.Choice(ROLES))
@redis_options
def acl(role: str, settings: Settings) -> None:
    """Print the command that gives a user of Redis the rights that a ROLE needs, and no others.

    Nothing is sent. Put a password in the place of PASSWORD, and run it by the server's administrator on each shard, and on
    Celery's broker. Consumers are sinks and trainers; the operator's commands are `gymq status`, `control`, `cancel`, `rm`,
    `dead`, `weights`, `metrics` and `flower`; `all` is for `gymq run` on a shared server.

    \b
    Examples:
      gymq acl agent
      gymq acl consumer | redis-cli --user admin --askpass
    """
    from redis.connection import parse_url

    from gymq.ops.acl import rule
    from gymq.store.topology import parse

    broker = parse(settings.broker_url or settings.redis_url)[0]
    say(rule(role, int(parse_url(broker.url).get("db") or 0)))
