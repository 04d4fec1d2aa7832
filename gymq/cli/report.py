"""The summary of a file of finished rollouts as a table."""

from __future__ import annotations

from rich.table import Table

from gymq.cli import table
from gymq.ops.summary import SUCCESS, Report, Summary, ks
from gymq.wire.calls import Usage
from gymq.wire.pricing import Prices


def show(report: Report, run: str, samples: int, prices: Prices | None) -> None:
    """Print the summary on stdout.

    Args:
        report: the summary.
        run: the run's name.
        samples: rollouts of each task.
        prices: the prices of tokens; None: unknown.
    """
    model = ", ".join(sorted(report.models)) or "none"
    scripted = " (a policy in code played the model: these are no results of a model)" if report.scripted else ""
    columns = dict(report.environments) if len(report.environments) > 1 else {}
    columns = {**columns, "all": report.total} if columns else {next(iter(report.environments), "all"): report.total}
    numbers = table.make_table("", *[f">{name}" for name in columns])
    for label, cells in _lines(list(columns.values()), samples):
        numbers.add_row(label, *cells)
    unscored = report.total.rollouts - report.total.scored
    note = f"pass@k: unbiased estimate over tasks with k scored rollouts; success is a reward of {SUCCESS:g} or more"
    note += f"; {unscored} rollouts have no reward and count in no mean" if unscored else ""
    table.show("", f"run {run}, model {model}{scripted}", "", numbers, "", note)
    if prices is not None or len(report.tokens) > len(report.models):
        table.show("", tokens_table(report.tokens, prices))


def tokens_table(tokens: dict[str, Usage], prices: Prices | None) -> Table:
    """Return a table of the tokens of each model, and of their cost.

    Args:
        tokens: the tokens, by the models' SPECs.
        prices: the prices of tokens; None: unknown.
    """
    columns = ["model", ">tokens in", ">of them cached", ">tokens out", *([f">{prices.currency}"] if prices else [])]
    made = table.make_table(*columns)
    costs = {spec: prices.cost(spec, usage) if prices else None for spec, usage in tokens.items()}
    for spec, usage in tokens.items():
        cells = [f"{usage.input_tokens}", f"{usage.cached_tokens}", f"{usage.output_tokens}"]
        made.add_row(
            spec, *cells, *([_number(costs[spec], ".4f") if costs[spec] is not None else "no price"] if prices else [])
        )
    if prices and len(tokens) > 1:
        made.add_row("all that has a price", "", "", "", _number(sum(cost or 0.0 for cost in costs.values()), ".4f"))
    return made


def _lines(columns: list[Summary], samples: int) -> list[tuple[str, list[str]]]:
    lines = [
        ("rollouts", [f"{s.rollouts}" for s in columns]),
        ("mean reward", [_number(s.mean_reward) for s in columns]),
        *[(f"pass@{k}", [_number(s.pass_at(k)) for s in columns]) for k in ks(samples)],
        ("mean turns", [f"{s.mean_turns:.2f}" for s in columns]),
        ("tokens in / out", [f"{s.input_tokens} / {s.output_tokens}" for s in columns]),
        ("rollouts/s", [_number(s.rate, ".1f") for s in columns]),
    ]
    for status in sorted({status for s in columns for status in s.by_status}):
        lines.append((status, [f"{s.by_status[status]}" for s in columns]))
    for kind in sorted({kind for s in columns for kind in s.failures}):
        lines.append((f"  failed: {kind}", [f"{s.failures[kind]}" for s in columns]))
    for kind in sorted({kind for s in columns for kind in s.unrewarded}):
        lines.append((f"  no reward: {kind}", [f"{s.unrewarded[kind]}" for s in columns]))
    return lines


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"
