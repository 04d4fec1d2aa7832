"""`gymq worker`: this process as one worker, or the supervisor of one for each GPU."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import click
import msgspec

from gymq.celery.worker_command import ROLES
from gymq.cli.options import log_options, metrics_options, redis_options, run_options
from gymq.errors import UsageError
from gymq.observe.terminal import say
from gymq.settings import Settings

#: Seconds between two looks at the workers of `--gpus`.
POLL_INTERVAL = 0.2


@click.command()
@click.argument("role", type=click.Choice(ROLES))
@log_options
@metrics_options
@redis_options
@click.option("--model", metavar="SPEC", help="model: which model it serves: vllm:NAME, openai:NAME, replay:FILE or scripted.")
@run_options("model")
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="model, resource: calls in flight at once.")
@click.option(
    "--environments",
    metavar="A,B",
    help="Names and FILE.py:CLASS that it serves; of model scripted: plays.  [default: all installed]",
)
@click.option("--processes", type=click.IntRange(min=1), metavar="N", help="executor: calls that run at once.  [default: 2]")
@click.option(
    "--option", "pairs", multiple=True, metavar="KEY=VALUE", help="A further option of the role or backend; may be repeated."
)
@click.option("--name", metavar="NAME", help="What Celery and Flower call it.  [default: ROLE-PID]")
def worker(
    role: str,
    settings: Settings,
    processes: int | None,
    pairs: tuple[str, ...],
    name: str | None,
    **given: Any,
) -> int:
    """Run one worker of a ROLE until it is stopped; SIGTERM (or Ctrl-C) lets it finish what it holds.

    Workers may join and leave at any time, on any machine that reaches the server; several of a role share its work.
    Every worker needs the same server; a run needs an agent, a model worker of its model, and a resource worker of its
    environments, and an executor if an environment has isolated calls. What it serves is loaded before it takes work; what
    is named and cannot be loaded ends it (2).

    \b
    Examples:
      gymq worker agent
      gymq worker model --model vllm:Qwen/Qwen3-8B --gpus 0-7 --engine max_model_len=16384
      gymq worker model --model openai:qwen --base-url http://127.0.0.1:8000/v1 --concurrency 512
      gymq worker resource --environments weather,counter
      gymq worker executor --processes 4 --redis redis://:secret@10.0.0.5:6379/0
    """
    if not sys.flags.safe_path:
        # -P: the working directory is no place to import from, for this process and for the interpreters that it starts.
        os.execv(sys.executable, [sys.executable, "-P", "-m", "gymq.cli", *sys.argv[1:]])
    from gymq.local.read_options import parse_pairs
    from gymq.local.run_options import OPTIONS

    takes = {
        "agent": set[str](),
        "model": {"model", "concurrency", "environments", *(name for name, option in OPTIONS.items() if option.to == "model")},
        "resource": {"environments", "concurrency"},
        "executor": {"environments", "processes"},
    }
    options = {key: value for key, value in given.items() if value is not None and value != ()}
    for option in (*options, *(["processes"] if processes else [])):
        if option not in takes[role]:
            raise UsageError(f"--{option.replace('_', '-')} is no option of `gymq worker {role}`")
    if "engine" in options:
        options["engine"] = msgspec.json.encode(parse_pairs(options["engine"], "--engine")).decode()
    options |= parse_pairs(pairs, "--option")
    name = name or f"{role}-{os.getpid()}"
    if role == "model" and "gpus" in options:
        return _run_each(settings, options, name)
    os.environ.update(settings.environment())  # the app is made of the environment's settings
    from gymq import plugins
    from gymq.celery.worker_process import WorkerProcess
    from gymq.local.launch import model_secrets
    from gymq.process.secret_variables import forget_secrets
    from gymq.store.sharded import reach

    if role in ("agent", "model"):
        forget_secrets(model_secrets(options.get("model")))
    process = WorkerProcess(role, options, name, processes or 2)
    if role == "resource":
        forget_secrets(plugins.declared_secrets())
    asyncio.run(reach(settings))
    return process.run()


def _run_each(settings: Settings, options: dict[str, Any], name: str) -> int:
    """Run a model worker for each device, started again when it dies; return the exit code."""
    from gymq.celery.worker_command import command
    from gymq.local.gpus import shares
    from gymq.local.launch import WORKER_FATAL, WORKER_GRACE, model_secrets
    from gymq.process.supervisor import ChildSpec, Supervisor
    from gymq.store.sharded import reach

    specs: list[ChildSpec] = []
    for index, gpu in enumerate(shares(options.pop("gpus"), options)):
        worker_name = f"{name}-{gpu.replace(',', '-')}"
        own = settings.metrics_from(index)
        argv, env = command(own, "model", options | {"gpu": gpu}, worker_name)
        specs.append(
            ChildSpec(
                name=worker_name,
                argv=tuple(argv),
                env=env,
                secrets=model_secrets(options.get("model")),
                log=None,
                grace=WORKER_GRACE,
                fatal=WORKER_FATAL,
            )
        )
    asyncio.run(reach(settings))
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    supervisor = Supervisor(specs)
    supervisor.start()
    try:
        while not received:
            for event in supervisor.poll():
                say(f"gymq: {event}", err=True)
            time.sleep(POLL_INTERVAL)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)  # a second one ends all at once
        supervisor.stop()
    return 0
