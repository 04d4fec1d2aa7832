"""`gymq run`: everything in one command."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gymq.cli import EXIT_CODES
from gymq.cli.options import run_options
from gymq.errors import DataError

if TYPE_CHECKING:
    from gymq.client.rollout_set import RolloutSet
    from gymq.local.preflight import Preflight
    from gymq.local.run_dir import RunDir
    from gymq.local.run_session import RunSession
    from gymq.store.runs import RunConfig


@click.command(epilog=EXIT_CODES)
@click.argument("env", metavar="ENV")
@run_options("task")
@run_options("model", "judge", "run")
def run(env: str, **given: Any) -> int:
    """Roll out tasks in environment ENV: everything in one command.

    It starts a server (unless --redis), one worker of each role and the sink, enqueues the rows, shows how it goes and
    prints a summary. Finished rollouts are appended to OUT as they end; the last line printed is its path.

    The same command with the same --out continues a run that was stopped, or died; what OUT holds is not done again.
    --limit, --concurrency, --rpm and --tpm may differ then. A file of an other run is refused. Beside OUT lies the folder
    OUT.gymq until the run is finished.

    \b
    Examples:
      gymq run weather --data rows.jsonl --model scripted --out rollouts.jsonl
      gymq run multiple_choice --data mcqa.jsonl --model openai:gpt-4.1-mini --samples 8 --temperature 1 --out out/mcqa.jsonl
      gymq run reasoning_gym --data 'reasoning_gym:chain_sum?size=500' --model openai:qwen \\
          --base-url http://127.0.0.1:8000/v1 --concurrency 512 --out out/sums.jsonl
      gymq run weather --config run.yaml --limit 20 --out try.jsonl
    """
    from gymq.local.model_probe import probe_models
    from gymq.local.preflight import preflight
    from gymq.local.read_options import check_names, read_run_options
    from gymq.local.run_dir import RunDir
    from gymq.local.run_options import run_name
    from gymq.local.run_session import RunSession, terminate

    signal.signal(signal.SIGTERM, terminate)
    options = read_run_options(given, needed=("data", "model", "out"))
    check_names(env, options)
    identity = options.identity(env)
    config = options.config(env, run_name(identity))
    assert options.out is not None
    folder = RunDir(Path(options.out))
    rows = preflight(options.data, env, options.limit, options.prompt, on_bad=lambda line: click.echo(line, err=True))
    if not rows.rows:
        raise DataError(f"{options.data}: has no good rows; nothing to roll out")
    total = rows.rows * config.samples
    if len(_kept(folder, config.name, rows, wanted_only=True)) == total:
        click.echo(f"{folder.out}: complete: all {total} rollouts are there; nothing to do", err=True)
        return _finish(folder.out, config, rows.bad)
    asyncio.run(probe_models(options, say=lambda line: click.echo(line, err=True)))
    with folder.locked():
        kept = _kept(folder, config.name, rows)  # again: another process may have written until now
        if kept:
            click.echo(f"{folder.out}: {len(kept)} rollouts are there; the others are to do", err=True)
        folder.enter(config.name, identity)
        return _go(RunSession(options, config, identity["data"], rows, kept, folder), folder, config, rows.bad)


def _kept(folder: RunDir, name: str, rows: Preflight, wanted_only: bool = False) -> RolloutSet:
    """Return the rollouts that OUT holds, or only those of the rows that are wanted now."""
    from gymq.client.rollout_set import RolloutSet
    from gymq.local.preflight import check_kept
    from gymq.wire.ids import RolloutId

    kept = RolloutSet(name)
    for row, sample, environment in folder.kept(name):
        check_kept(rows.environments, row, environment)
        if not wanted_only or row < rows.rows:
            kept.add(str(RolloutId(name, row, sample)))
    return kept


def _go(session: RunSession, folder: RunDir, config: RunConfig, bad: int) -> int:
    """Run the session, tell its outcome, and return the exit code."""
    import time

    from gymq.local.run_session import HOPELESS, Stop

    began = time.time()
    try:
        stopped = session.go()
    except (KeyboardInterrupt, SystemExit) as error:
        stopped = Stop(128 + (signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM))
    if stopped is not None:
        kept = sum(1 for _ in folder.kept(config.name))
        click.echo(f"{kept} of {session.total} rollouts are in {folder.out}; the same command continues", err=True)
        if stopped.code == HOPELESS:
            click.echo(f"gymq: stopped, because all fail alike: {folder.last_failure()}", err=True)
            click.echo("gymq: once that is mended, the same command with --retry-failed does them all", err=True)
        return stopped.code
    code = _finish(folder.out, config, bad, since=began, total=session.total)
    folder.leave(keep_logs=session.troubled or code in (6, 8))
    return code


def _finish(out: Path, config: RunConfig, bad: int, *, since: float = 0.0, total: int = 0) -> int:
    """Print the summary and the path, and return the exit code."""
    from gymq.cli import report
    from gymq.ops import summary

    result = summary.read(out, since)
    report.show(result, config.name, config.samples, config.prices)
    lines: list[str] = []
    if bad:
        lines.append(f"{bad} rows were bad; they are listed above")
    failed = result.total.by_status["failed"] + result.total.by_status["cancelled"]
    if failed:
        first = f"; the first to fail says: {result.total.first_error}" if result.total.first_error else ""
        lines.append(f"{failed} rollouts failed or were cancelled; their `error` in {out} says why{first}")
    unrewarded = result.total.unrewarded.total()
    if unrewarded:
        first = f"; the first says: {result.total.first_unrewarded}"
        lines.append(f"{unrewarded} rollouts have no reward, though their environment has a verifier{first}")
    missing = total - result.total.rollouts
    if missing > 0:
        lines.append(f"the run was cancelled before {missing} of its rollouts had begun; the same command does them")
    for line in lines:
        click.echo(f"gymq: {line}", err=True)
    click.echo(str(out))
    return 3 if bad else 6 if failed or missing > 0 else 8 if unrewarded else 0
