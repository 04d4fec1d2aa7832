"""`gymq run`: everything in one command."""

from __future__ import annotations

import signal
from typing import Any

import click

from gymq.cli import EXIT_CODES
from gymq.cli.options import log_options, metrics_options, run_options
from gymq.observe.terminal import say


@click.command(epilog=EXIT_CODES)
@click.argument("env", metavar="ENV")
@run_options("task")
@run_options("model", "judge", "run")
@log_options
@metrics_options
def run(env: str, **given: Any) -> int:
    """Roll out tasks in environment ENV, an installed one's name or FILE.py:CLASS: everything in one command.

    It starts a server (unless --redis), one worker of each role and the sink, enqueues the rows, shows how it goes and
    prints a summary. Finished rollouts are appended to OUT as they end; the last line printed is its path.

    The same command with the same --out continues a run that was stopped, or died; what OUT holds is not done again.
    --limit, --samples, --concurrency, --rpm and --tpm may differ then; --retry-failed does again what failed. A file of an
    other run is refused. Beside OUT lies the folder OUT.gymq.

    \b
    Examples:
      gymq run weather --data rows.jsonl --model scripted --out rollouts.jsonl
      gymq run multiple_choice --data mcqa.jsonl --model openai:gpt-4.1-mini --samples 8 --temperature 1 --out out/mcqa.jsonl
      gymq run reasoning_gym --data 'reasoning_gym:chain_sum?size=500' --model openai:qwen \\
          --base-url http://127.0.0.1:8000/v1 --concurrency 512 --out out/sums.jsonl
      gymq run ./dice.py:Dice --data tasks.jsonl --model scripted --out dice.jsonl
      gymq run weather --config run.yaml --limit 20 --out try.jsonl
    """
    from gymq.cli import report
    from gymq.local.local_run import LocalRun
    from gymq.local.read_options import read_run_options
    from gymq.local.run_guard import stopped_by
    from gymq.local.run_session import terminate
    from gymq.plugins import add_environment

    signal.signal(signal.SIGTERM, terminate)
    options = read_run_options(given, needed=("data", "model", "out"))
    local = LocalRun(add_environment(env), options, say=lambda line: say(line, err=True))
    try:
        stopped = local.go()
    except (KeyboardInterrupt, SystemExit) as error:
        stopped = stopped_by(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
    if stopped is not None:
        for line in local.told(stopped):
            say(line, err=True)
        return stopped.code
    report.show(local.report, local.config.name, local.config.samples, local.config.prices)
    for line in local.complaints():
        say(f"gymq: {line}", err=True)
    say(str(local.folder.out))
    return local.code
