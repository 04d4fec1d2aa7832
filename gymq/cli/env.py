"""`gymq env`: the environments that are installed."""

from __future__ import annotations

import click


@click.group()
def env() -> None:
    """List the environments that are installed.

    \b
    Examples:
      gymq env list
    """


@env.command("list")
def show() -> None:
    """List the environments that are installed: their tools, their hooks, and where they come from.

    One that cannot be imported is listed with its error.

    \b
    Examples:
      gymq env list
    """
    from gymq import plugins
    from gymq.api.environment import EnvironmentSpec
    from gymq.cli.table import make_table
    from gymq.cli.table import show as print_table
    from gymq.errors import UsageError

    table = make_table("environment", "tools", "hooks", "from")
    for name, point in sorted(plugins.points(plugins.ENVIRONMENTS).items()):
        where = f"{point.dist.name if point.dist else 'unknown package'}: {point.value}"
        try:
            spec: EnvironmentSpec = type(plugins.environment(name)).spec()
        except UsageError as error:
            table.add_row(name, "", f"broken: {error}", where)
            continue
        hooks = [hook for hook in ("open", "respond", "verify", "close") if getattr(spec, hook).present]
        tools = [tool.name + (" (isolated)" if tool.isolated else "") for tool in spec.tools]
        table.add_row(name, ", ".join(tools) or "-", ", ".join(hooks) or "-", where)
    print_table(table)
