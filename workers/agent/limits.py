"""The limits of a rollout: which one is reached, and when it must be looked at."""

from __future__ import annotations

from gymq.store.runs import RunConfig

from .state import State

#: Seconds after which a pending call counts as overdue, wherever it is. Workers have limits of their own, counted from
#: when they start; this one is for calls that no worker serves.
OVERDUE = 3600.0

#: Seconds by which the clocks of two machines may differ.
SKEW = 1.0

#: Phases in which the conversation is over: limits end conversations.
_OVER = frozenset({"verifying", "closing"})


def reached(state: State, config: RunConfig, now: float, *, generate: bool) -> str:
    """Return the limit that a rollout has reached before its next call; empty: none.

    Args:
        state: the rollout's.
        config: its run.
        now: seconds since the epoch.
        generate: whether its next call begins another turn.
    """
    if generate and state.turns >= config.max_turns:
        return "max_turns"
    tokens = state.usage.input_tokens + state.usage.output_tokens
    if config.max_rollout_tokens and tokens >= config.max_rollout_tokens:
        return "max_rollout_tokens"
    if config.max_working_seconds and state.working >= config.max_working_seconds:
        return "max_working_seconds"
    return "max_seconds" if out_of_time(state, config, now) else ""


def out_of_time(state: State, config: RunConfig, now: float) -> bool:
    """Return whether the conversation has reached `max_seconds`, or will in a moment.

    Args:
        state: the rollout's state.
        config: its run.
        now: seconds since the epoch.
    """
    return bool(config.max_seconds) and state.phase not in _OVER and now >= state.started_at + config.max_seconds - SKEW / 10


def tools_left(state: State, config: RunConfig, most: int) -> int:
    """Return how many tool calls may be sent now, at most `most`.

    Args:
        state: the rollout's state.
        config: its run.
        most: calls.
    """
    return min(most, config.max_tool_calls - state.tool_calls) if config.max_tool_calls else most


def overdue(state: State, now: float) -> bool:
    """Return whether the pending calls were sent too long ago.

    Args:
        state: the rollout's state.
        now: seconds since the epoch.
    """
    return now >= state.queued + OVERDUE - SKEW


def due(state: State, config: RunConfig, now: float) -> float:
    """Return when a rollout without mail must be looked at: a wait is over, a limit is reached, or its calls are overdue.

    Args:
        state: the rollout's state.
        config: its run.
        now: seconds since the epoch, as what is returned.
    """
    when = state.resume or now + OVERDUE
    if config.max_seconds and state.phase not in _OVER:
        when = min(when, state.started_at + config.max_seconds)
    return when
