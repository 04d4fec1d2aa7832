"""The record of a finished rollout: one JSON object, declared here once for all its writers and readers.

A new field is added to `RolloutRecord` or `CallRecord`, with a default, at a place before `seq`: records from before it are
read as if they had the default. Any other change counts `SCHEMA_VERSION` up.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast

import msgspec

from gymq.errors import Fault
from gymq.wire.calls import ImageSpan, Tokens, Usage
from gymq.wire.message import Message

#: Version of the record and its JSON Schema, which `gymq schema rollout` prints.
SCHEMA_VERSION = 1

_Object = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object"})]
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class RecordedFault(msgspec.Struct):
    """A fault in a record.

    Args:
        kind: the party or the cause at fault, one of `gymq.errors.FaultKind`.
        message: one line for a person.
    """

    kind: str
    message: str

    @classmethod
    def of(cls, fault: Fault | None) -> RecordedFault | None:
        """Return a fault as records have it."""
        return None if fault is None else cls(fault.kind, fault.message)


class RecordedUsage(msgspec.Struct):
    """Tokens of all answers of a rollout's model; 0 where the server counted none.

    Args:
        input_tokens: of the prompts; a prompt counts each time it is sent.
        output_tokens: of the answers.
        cached_tokens: of the input tokens, those that the server had cached.
        reasoning_tokens: of the output tokens, those of reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage) -> RecordedUsage:
        """Return usage as records have it."""
        return cls(*msgspec.structs.astuple(usage))


class RecordedTokens(msgspec.Struct):
    """Token ids and logprobs of one answer, each array base64 of its little-endian bytes.

    Args:
        prompt_start: the first so many ids of the prompt are those of this rollout's previous `generate`: its prompt, then
            its output.
        prompt: the prompt's other ids, int32.
        output: the sampled ids, int32.
        logprobs: one float32 for each sampled id, or empty.
        versions: the policy that sampled them: runs `[index of the first sampled id, policy version]`, ascending from
            index 0; empty: unknown.
        images: where the images of `prompt` stand: `[start, end, digest of the URL]`, in the ids of the whole prompt; absent:
            it holds none.
    """

    prompt_start: int = 0
    prompt: bytes = b""
    output: bytes = b""
    logprobs: bytes = b""
    versions: list[tuple[int, int]] = []
    images: list[ImageSpan] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, tokens: Tokens) -> RecordedTokens:
        """Return tokens as records have them."""
        images = tokens.images or msgspec.UNSET
        return cls(tokens.prompt_start, tokens.prompt, tokens.output, tokens.logprobs, tokens.versions, images)

    def tokens(self) -> Tokens:
        """Return the tokens as calls carry them."""
        return Tokens(self.prompt_start, self.prompt, self.output, self.logprobs, self.versions, self.images or [])


class CallRecord(msgspec.Struct, omit_defaults=True):
    """One answered call to a model or an environment; fields after `worker` are left out where they say nothing.

    Args:
        call: `step.number`; calls with the same step were out at the same time.
        kind: `open`, `generate`, `tool`, `respond`, `verify`, `close`, or `ask`: a question of a hook to a model.
        queued: when it was sent, seconds since the epoch.
        started: when a worker began, seconds since the epoch; after a death: when the last one began.
        finished: when it was done, seconds since the epoch.
        worker: the worker that answered.
        name: of `tool`: the tool; of `ask`: the model.
        attempt: how many workers died with it in hand.
        waited: seconds of the work in which it only waited, for a rate limit say.
        finish: of `generate` and `ask`: `stop`, `tool_calls`, `length` or `content_filter`.
        fault: why it failed.
        input_tokens: of `generate` and `ask`: tokens of the prompt.
        output_tokens: of `generate` and `ask`: tokens of the answer.
        cached_tokens: of the input tokens, those that the server had cached.
        message: of `generate`: the index of its answer in `messages`.
        tokens: of `generate`, when the server gives token ids.
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
    fault: RecordedFault | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    message: int | None = None
    tokens: RecordedTokens | None = None

    @property
    def step(self) -> int:
        """The rollout's step that sent the call."""
        return int(self.call.partition(".")[0])


#: `no_reward` of a rollout whose environment scores none, which is no defect.
NO_VERIFIER = "the environment has no verifier"


class RolloutRecord(msgspec.Struct, kw_only=True):
    """A finished rollout: a line of the JSONL sink, `Rollout.json` of a consumer; an unknown value is null.

    Args:
        rollout_id: `run.row.sample`, unique; always the first field.
        run: the run's name.
        environment: the task's environment.
        agent: the agent's registered name.
        model: the run's model, as `--model` says it.
        task_id: the row's `id`; a row without one has its number in the run.
        group_id: `run.row`: the same for all samples of a task.
        sample: the index of the sample within its group.
        status: `completed`, `truncated`, `failed` or `cancelled`.
        stop: why it was truncated; of `cancelled`: `stale`, or null.
        reward: the verifier's reward; null when no verifier gave one, which is not 0.
        no_reward: why `reward` is null; null where `error` says it.
        rewards: the reward's components by name.
        turns: answers of the model.
        tool_calls: tool calls, those that were refused too.
        usage: tokens of all answers.
        error: of `failed` and `cancelled`: why.
        task: the row's other fields, as they were, `id` too.
        metrics: other numbers of the verifier by name.
        started_at: when its first step ran, seconds since the epoch.
        finished_at: when its last step ran, seconds since the epoch.
        model_name: the server's name of the model that answered; empty if none did.
        versions: the oldest and the newest policy version that its tokens were sampled with; null where no backend said.
        seq: its commit number: how many rollouts of the run, on its shard, had ended with it.
        messages: the whole conversation, the opening messages first.
        calls: every call that was answered, in order.
    """

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
    usage: RecordedUsage
    error: RecordedFault | None
    task: _Object
    metrics: dict[str, float]
    started_at: float
    finished_at: float
    model_name: str = ""
    versions: tuple[int, int] | None = None
    seq: int = 0
    messages: list[Message]
    calls: list[CallRecord] = []


_encoder = msgspec.json.Encoder()

#: The end of a record that was encoded before it is committed: these fields stand in Redis already.
_END = b',"seq":0,"messages":[],"calls":[]}'


def encode_header(record: RolloutRecord) -> bytes:
    """Encode a record up to `seq`, without its closing brace: the commit script adds the rest."""
    return _encoder.encode(record).removesuffix(_END)


def encode_call(record: CallRecord) -> bytes:
    """Encode the record of a call."""
    return _encoder.encode(record)


def narrow(struct: type[_Struct], *names: str, **types: Any) -> type[_Struct]:
    """Derive a struct with some of another's fields: its decoder passes over all others, which may be missing.

    Args:
        struct: `RolloutRecord` or `CallRecord`; type checkers take the result for it.
        names: the fields.
        types: further fields, each with a type instead of its own; a struct is that of a list's items.

    Raises:
        TypeError: the struct has no such field.
    """
    wanted = {*names, *types}
    fields: list[Any] = []
    for field in msgspec.structs.fields(struct):
        if field.name not in wanted:
            continue
        wanted.remove(field.name)
        kind = types.get(field.name, field.type)
        if field.name in types and issubclass(kind, msgspec.Struct):
            kind = list[kind]  # type: ignore[valid-type]
        if field.required:
            fields.append((field.name, kind))
        elif field.default_factory is msgspec.NODEFAULT:
            fields.append((field.name, kind, field.default))
        else:
            fields.append((field.name, kind, msgspec.field(default_factory=field.default_factory)))
    if wanted:
        raise TypeError(f"{struct.__name__} has no field {', '.join(sorted(wanted))}")
    return cast(type[_Struct], msgspec.defstruct(f"Narrow{struct.__name__}", fields, kw_only=True))
