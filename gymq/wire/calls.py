"""Calls and replies: a call goes from an agent worker to a model or a resource worker, a reply comes back.

Both are msgpack arrays. A call carries references and what is new since the callee last heard of the rollout;
a callee that has not kept the rest loads it from Redis.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gymq.errors import Fault
from gymq.wire.ids import CallId, place

#: The schema: the layout of calls, replies and states. A field with a default at an array's end is no new schema: who does
#: not know it passes over it, and who misses it takes the default. Any other change is one: count up here, and read the
#: older ones where they are decoded.
SCHEMA = 1

#: The field of a call's mail. It tells the schema, so that any version can see what it cannot read without decoding it.
CALL = "c" if SCHEMA == 1 else f"c{SCHEMA}"

CallKind = Literal["generate", "open", "tool", "respond", "verify", "close", "ask"]


class Call(msgspec.Struct, array_like=True):
    """One call, pending until its reply is merged into the rollout.

    Args:
        rollout: the rollout's address.
        step: the rollout's step that sent it; with `n` it makes the call's id, `rollout:step:n`.
        n: its number within the step.
        kind: what is asked for.
        run: the run's name.
        environment: the environment's name.
        row: the index of the task in the run's ledger.
        queued: when it was sent, in seconds since the epoch.
        length: how many messages the conversation has.
        seen: the index of the first message of `messages`.
        messages: the encoded messages from `seen` on, when they are few bytes; else empty: load them.
        name: of `tool`: the tool's name.
        arguments: of `tool`: its arguments as the model wrote them.
        state: the environment's state, encoded as msgpack; None: it has none, or `has_state` says to load it.
        has_state: True: the state is too large to travel in the call; load it.
        task: the encoded task, when it is few bytes; None: load it.
        parameters: of `generate` and `ask`: the encoded `RequestParameters`; None: load it.
        born: when the run was created: a run may take the name of one that was removed.
        timeout: of `generate` and `ask`: seconds that it may take once a worker has begun; 0: the backend's own limit.
        answer: of a hook that has asked a model: its answer, an encoded message; None: it has not asked.
        note: of such a hook: what it wanted to be told again, msgpack.
    """

    rollout: str
    step: int
    n: int
    kind: CallKind
    run: str
    environment: str
    row: int
    queued: float
    length: int = 0
    seen: int = 0
    messages: list[bytes] = []
    name: str = ""
    arguments: str = ""
    state: bytes | None = None
    has_state: bool = False
    task: bytes | None = None
    parameters: bytes | None = None
    born: float = 0.0
    timeout: float = 0.0
    answer: bytes | None = None
    note: bytes | None = None

    @property
    def id(self) -> str:
        """The call's id, the same for every delivery of it."""
        return str(CallId(self.rollout, self.step, self.n))

    @property
    def place(self) -> str:
        """The rollout's id, as people know it."""
        return place(self.rollout)

    @property
    def idempotency_token(self) -> str:
        """Idempotency token: distinguishes a re-sent call from one with the same id after Redis was rolled back."""
        return idempotency_token(self.queued)


def idempotency_token(queued: float) -> str:
    """Return the idempotency token of calls that were sent at a time, in seconds since the epoch."""
    return repr(queued)


class RequestParameters(msgspec.Struct, array_like=True):
    """A rollout's requests to the model, but for the messages; fixed when the rollout begins, and stored once.

    Args:
        body: the request's sampling fields, a JSON object.
        tools: the declared tools, a JSON list.
        declare: whether the request names the tools; an agent that reads calls from plain text does not.
    """

    body: bytes = b"{}"
    tools: bytes = b"[]"
    declare: bool = True

    def request(self) -> bytes:
        """Return the request's fields but for the model and the messages, a JSON object."""
        if not self.declare or self.tools == b"[]":
            return self.body
        return b'{"tools":' + self.tools + (b"," + self.body[1:] if len(self.body) > 2 else b"}")


class Usage(msgspec.Struct, array_like=True):
    """Tokens of one or more model calls."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Add another call's tokens to these."""
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cached_tokens += other.cached_tokens
        self.reasoning_tokens += other.reasoning_tokens


class ImageSpan(msgspec.Struct, array_like=True, frozen=True):
    """The place of an image in a call's prompt.

    Args:
        start: the index of its first id in the prompt, whatever of that is stored.
        end: the index after its last id.
        image: which one it is: a digest of its URL.
    """

    start: int
    end: int
    image: str


class Tokens(msgspec.Struct, array_like=True):
    """Token ids and logprobs of one model call, packed little-endian; stored once.

    Args:
        prompt_start: the first this many ids of the prompt are those of the rollout's previous call (prompt, then output).
        prompt: the prompt's ids from `prompt_start` on, int32.
        output: the sampled ids, int32.
        logprobs: one float32 per sampled id, or empty.
        versions: which policy sampled them, as runs `(index of the first sampled id, policy version)`: ascending, the first
            begins at 0, and each goes on to where the next begins; empty: unknown.
        images: where the images of `prompt` stand.
    """

    prompt_start: int = 0
    prompt: bytes = b""
    output: bytes = b""
    logprobs: bytes = b""
    versions: list[tuple[int, int]] = []
    images: list[ImageSpan] = []


class Generated(msgspec.Struct, array_like=True):
    """A model's answer.

    Args:
        message: the assistant's message, encoded as JSON.
        finish: `stop`, `tool_calls`, `length` or `content_filter`.
        usage: its tokens.
        tokens: its token ids, when the server gave them.
        model: what the server calls the model that answered.
    """

    message: bytes
    finish: str
    usage: Usage
    tokens: Tokens | None = None
    model: str = ""


class Asked(msgspec.Struct, array_like=True):
    """A hook's question to a model; the hook is called again with the answer.

    Args:
        messages: the prompt, encoded messages.
        note: what the hook wants to be told again beside the answer, msgpack.
        sampling: the request's sampling fields, a JSON object.
        model: the model's SPEC; empty: the run's judge.
    """

    messages: list[bytes]
    note: bytes
    sampling: bytes = b"{}"
    model: str = ""


class ToolResult(msgspec.Struct, array_like=True):
    """The outcome of a tool call.

    Args:
        content: the result's content, encoded as JSON: a string or a list of content parts.
        error: True: the call failed by the model's fault, and `content` tells it so.
        state: the new state, encoded as msgpack; None: unchanged.
    """

    content: bytes
    error: bool = False
    state: bytes | None = None


class Opened(msgspec.Struct, array_like=True):
    """The outcome of `open`: the encoded state, further messages, and a JSON list of tools (None: keep)."""

    state: bytes | None = None
    messages: list[bytes] = []
    tools: bytes | None = None


class Responded(msgspec.Struct, array_like=True):
    """The outcome of `respond`.

    Args:
        messages: encoded messages.
        done: whether it is over.
        state: the new state; None: unchanged.
        ask: what it asks a model before it says anything.
    """

    messages: list[bytes] = []
    done: bool = False
    state: bytes | None = None
    ask: Asked | None = None


class Scored(msgspec.Struct, array_like=True):
    """A verifier's verdict, as `gymq.api.environment.Score`; or, in `ask`, what it asks a model before it gives one."""

    reward: float | None = None
    rewards: dict[str, float] = {}
    metrics: dict[str, float] = {}
    reason: str = ""
    ask: Asked | None = None


class Reply(msgspec.Struct, array_like=True):
    """The end of a call.

    Args:
        n: the call's number within its step.
        started: when work on it began, in seconds since the epoch.
        finished: when it ended.
        worker: who did it.
        fault: why it failed, or None.
        value: the msgpack of `Generated`, `ToolResult`, `Opened`, `Responded` or `Scored`; empty after a fault or a `close`.
        attempt: how many workers died with the call in hand.
        waited: seconds between `started` and `finished` in which it only waited, for a rate limit say.
    """

    n: int
    started: float
    finished: float
    worker: str
    fault: Fault | None = None
    value: bytes = b""
    attempt: int = 0
    waited: float = 0.0


_encoder = msgspec.msgpack.Encoder()
_call_decoder = msgspec.msgpack.Decoder(Call)
_parameters_decoder = msgspec.msgpack.Decoder(RequestParameters)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


def encode(value: msgspec.Struct) -> bytes:
    """Encode a call, a reply or a reply's value."""
    return _encoder.encode(value)


def call_schema(field: bytes) -> int:
    """Return a call's schema, which the name of its mail's field tells."""
    # Any other name was not written by gymq; the decoder judges the mail by its content.
    return int(field[1:]) if field[:1] == b"c" and field[1:].isdigit() and len(field) < 10 else 1


def decode_call(data: bytes) -> Call:
    """Decode a call from a mailbox."""
    return _call_decoder.decode(data)


def decode_reply(data: bytes) -> Reply:
    """Decode a reply from an agent's mailbox."""
    return _reply_decoder.decode(data)


def decode_parameters(data: bytes) -> RequestParameters:
    """Decode a rollout's request parameters."""
    return _parameters_decoder.decode(data)
