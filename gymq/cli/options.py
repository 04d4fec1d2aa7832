"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gymq.errors import ServerUnreachable
from gymq.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def server_options(command: F) -> F:
    """Give a command `--redis` and `--of`, which say where the server is; `find_server` reads them."""
    redis = click.option(
        "--redis",
        metavar="URL",
        envvar="GYMQ_REDIS_URL",
        show_envvar=True,
        help="Server, redis://[:password@]host:port/db; several, with commas, are shards.  [default: redis://127.0.0.1:6379/0]",
    )
    of = click.option("--of", metavar="OUT", help="The server of a `gymq run ... --out OUT` that is running on this machine.")
    return redis(of(command))


def find_server(redis: str | None, of: str | None) -> Settings:
    """Turn `--redis` and `--of` into settings.

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


def task_options(command: F) -> F:
    """Give a command the options that say what is rolled out, and how; `RunOptions` and `gymq.local.run_options` read them."""
    positive, count, seconds = click.IntRange(min=1), click.IntRange(min=0), click.FloatRange(min=0, min_open=True)
    given = [
        click.option("--data", metavar="ROWS", help="Rows: .jsonl, .parquet, a saved data set, or PRODUCER:SOURCE."),
        click.option("--model", metavar="SPEC", help="vllm:NAME, openai:NAME, replay:FILE or scripted."),
        click.option("--samples", type=positive, metavar="N", help="Rollouts of each task.  [default: 1]"),
        click.option("--limit", type=positive, metavar="N", help="Take only the first N rows; may be raised later."),
        click.option("--concurrency", type=positive, metavar="N", help="Rollouts in flight at once.  [default: 256]"),
        click.option("--max-turns", type=positive, metavar="N", help="Answers of the model per rollout.  [default: 30]"),
        click.option("--max-rollout-tokens", type=positive, metavar="N", help="Tokens, in and out, of all its answers."),
        click.option("--max-seconds", type=seconds, metavar="S", help="Seconds that a rollout may last."),
        click.option("--max-working-seconds", type=seconds, metavar="S", help="The same, without what its calls waited."),
        click.option("--max-tool-calls", type=positive, metavar="N", help="Tool calls per rollout."),
        click.option("--call-timeout", type=seconds, metavar="S", help="Seconds of one answer.  [default: the backend's]"),
        click.option("--infra-retries", type=count, metavar="N", help="New tries per rollout after outages.  [default: 8]"),
        click.option("--data-retries", type=count, metavar="N", help="New tries after other faults.  [default: 0]"),
        click.option("--verify-retries", type=count, metavar="N", help="New tries of the verifier.  [default: 10]"),
        click.option("--max-staleness", type=count, metavar="N", help="Policy versions that its oldest token may be behind."),
        click.option("--batch", type=positive, metavar="N", help="Rollouts that the trainer uses for one policy version."),
        click.option("--judge", metavar="SPEC", help="The model that verifiers ask.  [default: the run's model]"),
        click.option("--temperature", type=click.FloatRange(min=0), metavar="T", help="Sampling temperature."),
        click.option("--max-tokens", type=positive, metavar="N", help="Tokens of one answer at most."),
        click.option(
            "--sampling",
            multiple=True,
            metavar="NAME=VALUE",
            help="A further sampling parameter, as top_p=0.9; may be repeated.",
        ),
        click.option("--agent", metavar="NAME", help="Which agent decides.  [default: tool]"),
        click.option(
            "--prompt-config", metavar="P.yaml", help="Words the prompt from the rows' fields: user: and perhaps system:."
        ),
        click.option("--prices", metavar="P.yaml", help="What a million tokens of each model cost, for the summary."),
        click.option(
            "--config", metavar="RUN.yaml", help="Any of these options by name, and sampling:; the command line wins."
        ),
    ]
    for option in reversed(given):
        command = option(command)
    return command


def rate_options(command: F) -> F:
    """Give a command `--rpm` and `--tpm`, which all model workers of one endpoint, model and key share."""
    above = click.FloatRange(min=0, min_open=True)
    rpm = click.option("--rpm", type=above, metavar="N", help="Of openai:NAME: requests per minute, of all workers together.")
    tpm = click.option("--tpm", type=above, metavar="N", help="Of openai:NAME: tokens per minute, of all workers together.")
    return rpm(tpm(command))


def token_option(command: F) -> F:
    """Give a command `--token-ids` and `--tokenizer`."""
    told = "Of openai:NAME on vLLM: ask for token ids and logprobs with every answer."
    where = "Of --api generate: the model's tokenizer, a folder or a name.  [default: NAME]"
    tokenizer = click.option("--tokenizer", metavar="PATH", help=where)
    return click.option("--token-ids", is_flag=True, default=None, help=told)(tokenizer(command))


def engine_options(command: F) -> F:
    """Give a command the options of vllm:NAME: devices, the engine's arguments, parsers."""
    given = [
        click.option("--gpu", metavar="N,..", help="Of vllm:NAME: its device, or several to split it over; none: a CPU."),
        click.option("--gpus", metavar="0-7", help="Of vllm:NAME: a worker for each of these devices."),
        click.option("--engine", multiple=True, metavar="KEY=VALUE", help="Of vllm:NAME: an argument of vLLM's engine."),
        click.option("--tool-parser", metavar="NAME", help="Of vllm:NAME: vLLM's, or none.  [default: by the model]"),
        click.option("--reasoning-parser", metavar="NAME", help="Of vllm:NAME: vLLM's, or none.  [default: by the model]"),
    ]
    for option in reversed(given):
        command = option(command)
    return command
