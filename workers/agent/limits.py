"""The limits of a rollout: which one is reached, and when it must be looked at."""

from __future__ import annotations

from gymq.store.runs import RunConfig

from .state import State

#: Seconds after which a pending call counts as overdue, wherever it is. Workers have limits of their own, counted from
#: when they start; this one is for calls that no worker serves.
OVERDUE = 3600.0

#: Seconds by which a process's idea of the server's clock may be wrong.
SKEW = 1.0

#: Phases in which the conversation is over: limits end conversations.
_OVER = frozenset({"verifying", "closing"})


def reached(state: State, config: RunConfig, lasted: float, *, generate: bool) -> str:
    """Return the limit that a rollout has reached before its next call; empty: none.

    Args:
        state: the rollout's.
        config: its run.
        lasted: seconds that it has lasted.
        generate: whether its next call begins another turn.
    """
    if generate and state.turns >= config.max_turns:
        return "max_turns"
    tokens = state.usage.input_tokens + state.usage.output_tokens
    if config.max_rollout_tokens and tokens >= config.max_rollout_tokens:
        return "max_rollout_tokens"
    if config.max_working_seconds and state.working >= config.max_working_seconds:
        return "max_working_seconds"
    return "max_seconds" if out_of_time(state, config, lasted) else ""


def out_of_time(state: State, config: RunConfig, lasted: float) -> bool:
    """Return whether the conversation has reached `max_seconds`, or will in a moment.

    Args:
        state: the rollout's state.
        config: its run.
        lasted: seconds that it has lasted.
    """
    return bool(config.max_seconds) and state.phase not in _OVER and lasted >= config.max_seconds - SKEW / 10


def tools_left(state: State, config: RunConfig, most: int) -> int:
    """Return how many tool calls may be sent now, at most `most`.

    Args:
        state: the rollout's state.
        config: its run.
        most: calls.
    """
    return min(most, config.max_tool_calls - state.tool_calls) if config.max_tool_calls else most


def overdue(waited: float) -> bool:
    """Return whether the pending calls have waited for too long.

    Args:
        waited: seconds since they were sent in which their mailbox was served.
    """
    return waited >= OVERDUE - SKEW


def due(state: State, config: RunConfig, now: float, lasted: float, waited: float = 0.0) -> float:
    """Return when a rollout without mail must be looked at: a wait is over, a limit is reached, or its calls are overdue.

    Args:
        state: the rollout's state.
        config: its run.
        now: seconds since the epoch, as what is returned.
        lasted: seconds that it has lasted.
        waited: seconds that its calls have waited.
    """
    when = state.resume or now + OVERDUE - waited
    if config.max_seconds and state.phase not in _OVER:
        when = min(when, now + config.max_seconds - lasted)
    return when
