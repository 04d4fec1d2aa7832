"""The state of a rollout between its steps, stored and live."""

from __future__ import annotations

from functools import cached_property, lru_cache

import msgspec

from gymq.api.agent import CallTool
from gymq.errors import Fault
from gymq.wire.calls import SCHEMA, Asked, Scored, Usage, decode_parameters
from gymq.wire.ids import RolloutId
from gymq.wire.json_types import JsonObject
from gymq.wire.task import Task


class Running(msgspec.Struct, array_like=True):
    """A tool call that was sent, or answered on the spot.

    Args:
        call: the call.
        content: its result as JSON, once it has one; an unknown tool has it at once.
    """

    call: CallTool
    content: bytes | None = None


class State(msgspec.Struct, array_like=True):
    """The stored state of a rollout: all that is not in its messages.

    Args:
        schema: see `gymq.wire.calls.SCHEMA`; stands first in every schema. Workers put mail of a newer one aside.
        phase: `new`, `opening`, `generating`, `tools`, `responding`, `verifying` or `closing`: what the pending calls are.
        started_at: when its first step ran, seconds since the epoch.
        length: messages in the conversation.
        turns: answers of the model.
        finish: how the newest answer ended.
        usage: tokens so far.
        queued: when the pending calls were sent, seconds since the epoch.
        model_seen: how many messages the model's worker was sent.
        resource_seen: how many messages the environment's worker was sent.
        todo: tool calls of this turn that were not sent yet.
        running: tool calls that are out.
        status: how the rollout ends, once that is known.
        stop: why it was truncated.
        fault: why it failed.
        score: the verdict, once there is one.
        model: what the server calls the model that answered.
        tool_calls: tool calls so far.
        shown: True: it is one of those that Flower shows.
        working: seconds that its calls have taken, those of scoring aside.
        infra, data: how often calls were sent again, from which budget.
        verify: likewise, of `verify_retries`.
        tries: how often the pending calls, or those that wait to be sent again, were sent again.
        resume: when those that wait are to be sent again, seconds since the epoch; 0: none wait.
        asks: questions that the hook has asked.
        ask: the one that the hook has asked last.
        answer: the answer to it, an encoded message, once there is one.
        no_reward: why there is no reward.
        asked: tokens of the answers to hooks' questions, by the model's SPEC.
        oldest, newest: policy versions that its tokens were sampled with; -1: no token said so yet.
        replica: the model worker that answered last, where those have private mailboxes.
        keeper: the resource worker that has the live session.
        lasted: seconds since its first step, without the time in which what it waited for was not served.
        counted: up to when these are counted, seconds since the epoch.
    """

    schema: int = SCHEMA
    phase: str = "new"
    started_at: float = 0.0
    length: int = 0
    turns: int = 0
    finish: str = ""
    usage: Usage = msgspec.field(default_factory=Usage)
    queued: float = 0.0
    model_seen: int = 0
    resource_seen: int = 0
    todo: list[CallTool] = []
    running: list[Running] = []
    status: str = ""
    stop: str = ""
    fault: Fault | None = None
    score: Scored | None = None
    model: str = ""
    tool_calls: int = 0
    shown: bool = False
    working: float = 0.0
    infra: int = 0
    data: int = 0
    verify: int = 0
    tries: int = 0
    resume: float = 0.0
    asks: int = 0
    ask: Asked | None = None
    answer: bytes | None = None
    no_reward: str = ""
    asked: dict[str, Usage] = {}
    oldest: int = -1
    newest: int = -1
    replica: str = ""
    keeper: str = ""
    lasted: float = 0.0
    counted: float = 0.0

    @property
    def asking(self) -> bool:
        """True if the pending call is a hook's question to a model."""
        return self.ask is not None and self.answer is None

    @property
    def pending(self) -> int:
        """The number of replies that the next mail brings."""
        if self.phase == "new" or self.resume:
            return 0
        return sum(running.content is None for running in self.running) if self.phase == "tools" else 1


#: Bytes that a rollout takes besides its messages.
WEIGHT = 2000

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)


class NewerSchema(Exception):
    """The state was written by a newer version; `schema` says by which.

    Args:
        schema: the state's schema.
    """

    def __init__(self, schema: int) -> None:
        super().__init__(f"a state of schema {schema}; this worker reads up to {SCHEMA}")
        self.schema = schema


class _Head(msgspec.Struct, array_like=True):
    """The first field of a state of any schema."""

    schema: int


_head_decoder = msgspec.msgpack.Decoder(_Head)


class LiveRollout(msgspec.Struct, dict=True):
    """A rollout as an agent worker holds it: the stored state, the messages and the task.

    Args:
        rid: the rollout's id, `run.row.sample`.
        version: how many steps were committed.
        state: the stored state.
        messages: all encoded messages.
        task: the task.
        task_data: the task, encoded.
        environment_state: the environment's state, msgpack, or None.
        parameters: what it asks of the model, encoded; None before it has begun.
        weight: about how many bytes it takes to keep.
        address: its address in Redis; its id where it is not there.
    """

    rid: str
    version: int
    state: State
    messages: list[bytes]
    task: Task
    task_data: bytes
    environment_state: bytes | None = None
    parameters: bytes | None = None
    weight: int = WEIGHT
    address: str = ""

    def __post_init__(self) -> None:
        self.address = self.address or self.rid

    @cached_property
    def id(self) -> RolloutId:
        """Its run, row and sample."""
        return RolloutId.parse(self.rid)

    @cached_property
    def incarnation(self) -> str:
        """That of its run, as its address says."""
        return self.address.partition("~")[2]

    @property
    def tools(self) -> list[JsonObject]:
        """The declared tools."""
        return [] if self.parameters is None else _tools(self.parameters)

    @property
    def declared(self) -> frozenset[str]:
        """The names of the declared tools."""
        return frozenset() if self.parameters is None else _names(self.parameters)


# Most rollouts of a run have the same parameters.
@lru_cache(maxsize=256)
def _tools(parameters: bytes) -> list[JsonObject]:
    return msgspec.json.decode(decode_parameters(parameters).tools)


@lru_cache(maxsize=256)
def _names(parameters: bytes) -> frozenset[str]:
    return frozenset(tool["function"]["name"] for tool in _tools(parameters))


def encode_state(state: State) -> bytes:
    """Encode a state as it is stored."""
    return _encoder.encode(state)


def decode_state(data: bytes | None) -> State:
    """Decode a stored state; None is that of a rollout that has not begun.

    Raises:
        NewerSchema: this version cannot read it.
    """
    if data is None:
        return State()
    try:
        state = _decoder.decode(data)
    except msgspec.MsgspecError:
        schema = _head_decoder.decode(data).schema
        if schema <= SCHEMA:
            raise
        raise NewerSchema(schema) from None
    if state.schema > SCHEMA:
        raise NewerSchema(state.schema)
    state.schema = SCHEMA  # as which it will be written
    return state
