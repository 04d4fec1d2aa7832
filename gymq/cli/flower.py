"""`gymq flower`: watch in a browser."""

from __future__ import annotations

import os
import secrets

import click

from gymq.cli.options import redis_options
from gymq.observe.terminal import say
from gymq.settings import Settings

#: The environment variable that holds Flower's password.
PASSWORD = "GYMQ_FLOWER_PASSWORD"


@click.command()
@redis_options
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Where it listens, on this machine only."
)
def flower(settings: Settings, port: int) -> None:
    """Watch workers and rollouts in a browser, with Flower: all failures, and a sample of the others.

    It listens on this machine only, asks for a name and a password, and changes nothing. The password is that of
    GYMQ_FLOWER_PASSWORD, or a new one, which is printed. Ctrl-C stops it.

    \b
    Examples:
      gymq flower
      gymq flower --port 5556 --of rollouts.jsonl
    """
    from gymq.cli.shards import with_shards

    with_shards(settings, lambda shards: shards.first.send("PING"))
    os.environ.update(settings.environment())  # the app is made of the environment's settings
    from gymq.celery.flower import ADDRESS, USER, Flower

    own = os.environ.get(PASSWORD)
    password = own or secrets.token_urlsafe(12)
    served = Flower(port, password)
    hint = f"the password of {PASSWORD}" if own else f"password {password}"
    say(f"http://{ADDRESS}:{port}/  user {USER}, {hint}")
    served.run()
