"""The parts of a finished rollout: a record for each call, written as it ends, and the header, written at the end.

The header is a JSON object without its closing brace: the commit script adds the commit's number, the messages and the
call records, which stand in Redis already.
"""

from __future__ import annotations

import msgspec

from gymq.errors import Fault
from gymq.store.runs import TOKENS, RunConfig
from gymq.wire.calls import Generated, Reply
from gymq.wire.recorded_tokens import RecordedTokens

from .state import LiveRollout, State


class CallRecord(msgspec.Struct, omit_defaults=True):
    """One call of a rollout, as it stands in the finished rollout's `calls`.

    Args:
        call: step and number, `3.0`.
        kind: `generate`, `open`, `tool`, `respond`, `verify`, `close` or `ask`.
        queued, started, finished: seconds since the epoch.
        worker: who did it.
        name: of a tool: its name; of `ask`: the model that was asked.
        attempt: how often the call was delivered to a worker that died.
        waited: seconds of the work in which it only waited, for a rate limit say.
        finish: of `generate` and `ask`: how the answer ended.
        fault: why it failed.
        input_tokens, output_tokens: of `generate` and `ask`.
        cached_tokens: of the input tokens, those that the server had cached.
        message: of `generate`: the index of its answer in the rollout's `messages`.
        tokens: of `generate`, when the server gave them: token ids and logprobs, base64 of little-endian arrays.
    """

    call: str
    kind: str
    queued: float
    started: float
    finished: float
    worker: str
    name: str | None = None
    attempt: int = 0
    waited: float = 0.0
    finish: str | None = None
    fault: dict[str, str] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    message: int | None = None
    tokens: RecordedTokens | None = None


class Header(msgspec.Struct):
    """A finished rollout but for its `messages`, `calls` and `seq`; `docs/rollouts.md` tells each field."""

    rollout_id: str
    run: str
    environment: str
    agent: str
    model: str
    task_id: str
    group_id: str
    sample: int
    status: str
    stop: str | None
    reward: float | None
    no_reward: str | None
    rewards: dict[str, float]
    turns: int
    tool_calls: int
    usage: dict[str, int]
    error: dict[str, str] | None
    task: msgspec.Raw
    metrics: dict[str, float]
    started_at: float
    finished_at: float
    model_name: str
    versions: tuple[int, int] | None = None


_encoder = msgspec.json.Encoder()


def call_record(
    kind: str, step: int, queued: float, reply: Reply, name: str = "", answer: Generated | None = None, message: int = 0
) -> bytes:
    """Encode the record of a call; `message` is the index that its answer, of `generate`, gets in the conversation."""
    call = f"{step}.{reply.n}"
    record = CallRecord(call, kind, queued, reply.started, reply.finished, reply.worker, name or None, reply.attempt)
    record.waited = reply.waited
    if reply.fault is not None:
        record.fault = _fault(reply.fault)
    if answer is not None:
        record.finish = answer.finish
        record.input_tokens, record.output_tokens = answer.usage.input_tokens, answer.usage.output_tokens
        record.cached_tokens = answer.usage.cached_tokens
        if kind == "generate":  # others are not the policy's
            record.message = message
            if answer.tokens is not None:
                record.tokens = RecordedTokens.of(answer.tokens)
    return _encoder.encode(record)


def header(live: LiveRollout, config: RunConfig, finished_at: float) -> bytes:
    """Encode the header of a rollout that has ended, without its closing brace."""
    run, row, sample = live.id
    state = live.state
    score = state.score
    return _encoder.encode(
        Header(
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
            usage={
                "input_tokens": state.usage.input_tokens,
                "output_tokens": state.usage.output_tokens,
                "cached_tokens": state.usage.cached_tokens,
                "reasoning_tokens": state.usage.reasoning_tokens,
            },
            error=_fault(state.fault) if state.fault else None,
            task=msgspec.Raw(live.task.fields),
            metrics=score.metrics if score else {},
            started_at=state.started_at,
            finished_at=finished_at,
            model_name=state.model,
            versions=None if state.oldest < 0 else (state.oldest, state.newest),
        )
    )[:-1]


def counts(model: str, state: State) -> list[str | int]:
    """What a rollout adds to the run's counters of tokens: names and numbers in turn, without those that are 0."""
    found: list[str | int] = []
    for spec, usage in [(model, state.usage), *state.asked.items()]:
        for name in TOKENS:
            if getattr(usage, name):
                found += [f"u:{name}:{spec}", getattr(usage, name)]
    return found


def _fault(fault: Fault) -> dict[str, str]:
    return {"kind": fault.kind, "message": fault.message}
