"""The command line. Commands are imported when they are used: `gymq --help` must answer at once."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from traceback import format_exception
from types import TracebackType

import click

from gymq.errors import GymqError, ServerUnreachable
from gymq.observe.redaction import Redaction
from gymq.observe.terminal import say

#: Each command's module within this package, its function there, and what it does in one line.
COMMANDS = {
    "run": ("run", "run", "Roll out tasks: everything in one command."),
    "worker": ("worker", "worker", "Run one worker: agent, model, resource or executor."),
    "produce": ("produce", "produce", "Enqueue tasks, and nothing else."),
    "sink": ("sink", "sink", "Write finished rollouts to files, and nothing else."),
    "status": ("status", "status", "Show runs, workers, waiting mail, and what is missing."),
    "metrics": ("metrics", "metrics", "Print or serve Prometheus metrics of what Redis knows."),
    "cancel": ("cancel", "cancel", "Stop a run; what has ended is kept."),
    "rm": ("status", "remove", "Forget a run and all that Redis holds of it."),
    "consumer": ("consumer", "consumer", "List or drop the consumers of a run."),
    "dead": ("dead", "dead", "List, show, replay or drop calls that killed their process."),
    "weights": ("weights", "weights", "Give a model's workers other weights; see who has which."),
    "env": ("env", "env", "List the environments that are installed."),
    "schema": ("schema", "schema", "Print the JSON Schema of a finished rollout."),
    "control": ("control", "control", "Pause, resume, drain or ask the workers."),
    "chaos": ("chaos", "chaos", "Kill and stop workers on purpose; see that nothing is lost."),
    "acl": ("acl", "acl", "Print the rights on Redis that a role needs."),
    "server": ("server", "server", "Run the server that comes with gymq, by itself."),
    "flower": ("flower", "flower", "Watch workers and rollouts in a browser."),
}

EXIT_CODES = """\b
Exit codes:
  0  all rollouts ended, none failed, and verifiers scored all
  1  something went wrong in gymq
  2  the command is wrong as written, or --out holds another run
  3  some rows were bad; the others were rolled out
  4  the server cannot be reached
  5  another process writes the file
  6  some rollouts failed or were cancelled
  7  stopped: no rollout can succeed (a wrong key, no model, a broken environment)
  8  some rollouts have no reward, though their environment has a verifier
  9  stopped at --max-cost or --max-time; the same command continues
  130, 143  stopped by Ctrl-C, by SIGTERM
If several apply: 3 comes before 6, 6 before 8."""


class _Lazy(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        return getattr(import_module(f"gymq.cli.{module}"), function)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        say(f"gymq {version('gymq')}")
        ctx.exit()


@click.group(cls=_Lazy, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Agent rollouts on message queues: durable, exactly once, fast.

    \b
    Examples:
      gymq run weather --data rows.jsonl --model scripted --out rollouts.jsonl
      gymq env list
      gymq status
    """


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and an exit code."""
    sys.excepthook = _say_raised
    try:
        code = cli.main(standalone_mode=False) or 0
    except GymqError as error:
        code = _say(str(error), error.exit_code)
    except click.UsageError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _say(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _say("stopped", 130)
    except BrokenPipeError:
        # Whoever read our output went away; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if not _is_outage(error):
            raise
        code = _say(f"the connection to Redis broke: {error}", ServerUnreachable.exit_code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the outcome is decided: a Ctrl-C during the exit must not change the code
    sys.exit(code)


def _say(line: str, code: int) -> int:
    say(f"gymq: {Redaction()(line)}", err=True)
    return code


def _say_raised(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say(Redaction()("".join(format_exception(kind, error, trace))), err=True, end="")


def _is_outage(error: Exception) -> bool:
    from kombu.exceptions import OperationalError

    from gymq.store.connection import Outage

    return isinstance(error, Outage | OperationalError)
