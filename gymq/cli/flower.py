"""`gymq flower`: watch in a browser."""

from __future__ import annotations

import os

import click

from gymq.cli.options import find_server, server_options


@click.command()
@server_options
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Where it listens, on this machine only."
)
def flower(redis: str | None, of: str | None, port: int) -> None:
    """Watch workers and rollouts in a browser, with Flower: all failures, and a sample of the others.

    It listens on this machine only and changes nothing. Ctrl-C stops it.

    \b
    Examples:
      gymq flower
      gymq flower --port 5556 --of rollouts.jsonl
    """
    from gymq.cli.status import with_link
    from gymq.flower import command

    settings = find_server(redis, of)
    with_link(settings, lambda link: link.send("PING"))
    argv, env = command(settings, port)
    click.echo(f"http://127.0.0.1:{port}/")
    os.execvpe(argv[0], argv, {**os.environ, **env})
