"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, get_origin

import click

from gymq.errors import ServerUnreachable
from gymq.settings import Settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from gymq.local.run_options import Option, Receiver

F = TypeVar("F", bound=Callable[..., Any])


def redis_flags(command: F) -> F:
    """Give a command `--redis` and `--of`, which `redis_settings` reads."""
    redis = click.option(
        "--redis",
        metavar="URL",
        envvar="GYMQ_REDIS_URL",
        show_envvar=True,
        help="Server, redis://[:password@]host:port/db; several, with commas, are shards.  [default: redis://127.0.0.1:6379/0]",
    )
    of = click.option("--of", metavar="OUT", help="The server of a `gymq run ... --out OUT` that is running on this machine.")
    return redis(of(command))


def redis_settings(redis: str | None, of: str | None) -> Settings:
    """Return the settings that `--redis` and `--of` ask for.

    Args:
        redis: the URLs of the shards; None: the environment's.
        of: the file of finished rollouts of a `gymq run`; None: `redis` counts.

    Raises:
        UsageError: a setting makes no sense.
        ServerUnreachable: no such `gymq run` is running.
    """
    if of is not None:
        from gymq.local.run_dir import RunDir
        from gymq.process.embedded_redis import running_url

        redis = running_url(RunDir(Path(of)).server)
        if redis is None:
            raise ServerUnreachable(f"no `gymq run` with --out {of} is running; start it, or use --redis")
    return Settings.from_environment(redis_url=redis)


def redis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--redis` and `--of`, and pass it the settings that they ask for as `settings`."""

    @functools.wraps(command)
    def with_settings(*arguments: Any, redis: str | None, of: str | None, **options: Any) -> Any:
        return command(*arguments, settings=redis_settings(redis, of), **options)

    return redis_flags(with_settings)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--log-level` and `--log-format`, which hold for it and for the processes that it starts."""

    @functools.wraps(command)
    def with_logs(*arguments: Any, log_level: str | None, log_format: str | None, **options: Any) -> Any:
        from gymq.observe import logs

        given = {"GYMQ_LOG_LEVEL": log_level, "GYMQ_LOG_FORMAT": log_format}
        os.environ.update({name: value for name, value in given.items() if value is not None})
        logs.configure(Settings.from_environment())
        logs.identify(command.__name__)
        return command(*arguments, **options)

    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        envvar="GYMQ_LOG_LEVEL",
        show_envvar=True,
        help="The least that log lines are about.  [default: info]",
    )
    form = click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        envvar="GYMQ_LOG_FORMAT",
        show_envvar=True,
        help="Log lines for people, or a JSON object a line.  [default: text]",
    )
    return level(form(with_logs))


def metrics_options(command: F) -> F:
    """Give a command `--metrics-port` and `--metrics-host`, of which its settings are made."""

    @functools.wraps(command)
    def with_metrics(*arguments: Any, metrics_port: int | None, metrics_host: str | None, **options: Any) -> Any:
        given = {"GYMQ_METRICS_PORT": metrics_port, "GYMQ_METRICS_HOST": metrics_host}
        os.environ.update({name: str(value) for name, value in given.items() if value is not None})
        return command(*arguments, **options)

    port = click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        envvar="GYMQ_METRICS_PORT",
        show_envvar=True,
        metavar="PORT",
        help="Serve Prometheus metrics at /metrics; 0: at any free port, which a log line names.  [default: not served]",
    )
    host = click.option(
        "--metrics-host",
        envvar="GYMQ_METRICS_HOST",
        show_envvar=True,
        metavar="ADDRESS",
        help="Where metrics are served; whoever reaches it can read them.  [default: 127.0.0.1]",
    )
    return cast(F, port(host(with_metrics)))


def run_options(*receivers: Receiver) -> Callable[[F], F]:
    """Give a command the options of `RunOptions` that go to some receivers; with those of the task, `--config`."""
    from gymq.local.run_options import OPTIONS, RunOptions

    def add(command: F) -> F:
        if "task" in receivers:
            told = "Any of these options by name, and sampling:; the command line wins."
            command = click.option("--config", metavar="RUN.yaml", help=told)(command)
        for name, option in reversed(OPTIONS.items()):
            if option.to in receivers:
                command = _click_option(name, option, RunOptions.model_fields[name])(command)
        return command

    return add


def _click_option(name: str, option: Option, field: FieldInfo) -> Callable[[F], F]:
    """Return the click option of a field, whose type is an alternative of the field's type."""
    alternatives = () if get_origin(field.annotation) in (dict, None) else get_args(field.annotation)
    kind = next((kind for kind in alternatives if kind is not NoneType), field.annotation)
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.option(flag, is_flag=True, default=None, help=option.help)
    if get_origin(kind) is dict:
        return click.option(flag, multiple=True, metavar=option.metavar, help=option.help)
    bounds = {bound: getattr(limit, bound) for limit in field.metadata for bound in ("ge", "gt") if hasattr(limit, bound)}
    number: click.ParamType[Any] | None = None
    if get_origin(kind) is Literal:
        number = click.Choice(get_args(kind))
    elif kind is int:
        number = click.IntRange(min=1 if option.positive else bounds["ge"])
    elif kind is float:
        number = click.FloatRange(min=0, min_open=option.positive or "gt" in bounds)
    return click.option(flag, type=number, metavar=option.metavar, help=option.help)
