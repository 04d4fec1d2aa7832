"""The parts of a finished rollout: a record for each call, written as it ends, and the header, written at the end.

The header is a JSON object without its closing brace: the commit script adds the commit's number, the messages and the
call records, which stand in Redis already.
"""

from __future__ import annotations

import msgspec

from gymq.store.run_status import TOKENS
from gymq.store.runs import RunConfig
from gymq.wire.calls import Generated, Reply
from gymq.wire.record import (
    CallRecord,
    RecordedFault,
    RecordedTokens,
    RecordedUsage,
    RolloutRecord,
    encode_header,
)

from .state import LiveRollout, State


def call_record(
    kind: str, step: int, queued: float, reply: Reply, name: str = "", answer: Generated | None = None, message: int = 0
) -> CallRecord:
    """Make the record of a call.

    Args:
        kind: the call's kind.
        step: the rollout's step that sent it.
        queued: when it was sent, seconds since the epoch.
        reply: its reply.
        name: the tool, or the model that was asked.
        answer: the model's answer.
        message: of `generate`: the index of the answer in the conversation.
    """
    call = f"{step}.{reply.n}"
    record = CallRecord(call, kind, queued, reply.started, reply.finished, reply.worker, name or None, reply.attempt)
    record.fault = RecordedFault.of(reply.fault)
    if reply.waited:  # msgspec omits a default that is this very object, and the decoder makes floats of its own
        record.waited = reply.waited
    if answer is not None:
        record.finish = answer.finish
        record.input_tokens, record.output_tokens = answer.usage.input_tokens, answer.usage.output_tokens
        record.cached_tokens = answer.usage.cached_tokens
        if kind == "generate":  # others are not the policy's
            record.message = message
            if answer.tokens is not None:
                record.tokens = RecordedTokens.of(answer.tokens)
    return record


def header(live: LiveRollout, config: RunConfig, finished_at: float) -> bytes:
    """Encode the header of a rollout that has ended, without its closing brace.

    Args:
        live: the rollout.
        config: its run.
        finished_at: when its last step ran, seconds since the epoch.
    """
    run, row, sample = live.id
    state = live.state
    score = state.score
    return encode_header(
        RolloutRecord(
            rollout_id=live.rid,
            run=run,
            environment=live.task.environment,
            agent=config.agent,
            model=config.model,
            task_id=live.task.id or str(row),
            group_id=live.id.group,
            sample=sample,
            status=state.status,
            stop=state.stop or None,
            reward=score.reward if score else None,
            no_reward=None if score and score.reward is not None else (score.reason if score else state.no_reward) or None,
            rewards=score.rewards if score else {},
            turns=state.turns,
            tool_calls=state.tool_calls,
            usage=RecordedUsage.of(state.usage),
            error=RecordedFault.of(state.fault),
            task=msgspec.Raw(live.task.fields),
            metrics=score.metrics if score else {},
            started_at=state.started_at,
            finished_at=finished_at,
            model_name=state.model,
            versions=None if state.oldest < 0 else (state.oldest, state.newest),
            messages=[],
        )
    )


def counts(model: str, state: State) -> list[str | int]:
    """Return what a rollout adds to the run's counters of tokens and failures: names and numbers above 0, in turn.

    Args:
        model: the run's model.
        state: the rollout's state.
    """
    counters: list[str | int] = []
    for spec, usage in [(model, state.usage), *state.asked.items()]:
        for name in TOKENS:
            if getattr(usage, name):
                counters += [f"u:{name}:{spec}", getattr(usage, name)]
    if state.status == "failed" and state.fault is not None:
        counters += [f"f:{state.fault.kind}", 1]
    return counters
