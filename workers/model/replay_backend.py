"""The backend `replay`: recorded answers, matched by the exact prompt.

The files are read once, to note the place of the answer to each prompt; an answer is read from its file when a call needs it.
A prompt's key is the digest of its messages, each in one form (decoded, without reasoning, encoded again).
"""

from __future__ import annotations

import asyncio
import glob
import hashlib
import os
from collections.abc import Iterator

import msgspec

from gymq.api.backend import Backend, Request
from gymq.errors import CallError, DataError, UsageError
from gymq.ingest.chat_items import Item, to_messages
from gymq.wire.calls import Generated, Tokens, Usage
from gymq.wire.ids import RolloutId
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Message, decode_message, encode_message
from gymq.wire.record import CallRecord, RecordedTokens, RolloutRecord, narrow

from .tokens.prefixes import Prefixes

#: Rollouts of which the digest of the last call's token ids is kept.
_REMEMBERED = 16384

#: Characters of a message that the error of a miss shows.
_SHOWN = 80


class _Input(msgspec.Struct):
    input: str | list[Item] | None = None
    instructions: str | None = None


class _Output(msgspec.Struct):
    output: list[Item] = []
    model: str | None = None


class _NemoGymRow(msgspec.Struct):
    responses_create_params: _Input | None = None
    response: _Output | None = None


class _Recording(msgspec.Struct):
    """A recorded rollout: its conversation, the calls that gave its answers, and the name of its model."""

    messages: list[Message]
    calls: list[CallRecord]
    model: str


class _Answer(msgspec.Struct, array_like=True):
    """The place of an answer: the file's number, the line's first byte and length, and the message's index in it."""

    file: int
    offset: int
    length: int
    index: int


_Call = narrow(CallRecord, "kind", "finish", "fault", "input_tokens", "output_tokens", "tokens")
_rollout_decoder = msgspec.json.Decoder(narrow(RolloutRecord, "messages", "model_name", calls=_Call))
_nemo_gym_decoder = msgspec.json.Decoder(_NemoGymRow)


class ReplayBackend(Backend):
    """Answers from JSONL files of gymq's rollouts, or of NeMo Gym's.

    Of several answers to a prompt, a rollout gets that of the recording that it has followed so far; without one, they are
    given in the recorded order, by the number of the sample.

    Args:
        model: the file, or a pattern of several (`recorded/*.jsonl`).
        options: none are used.

    Raises:
        UsageError: there is no such file.
    """

    name = "replay"

    def __init__(self, model: str, options: JsonObject) -> None:
        super().__init__(model, options)
        if not model:
            raise UsageError("model replay: the file is missing; write --model replay:rollouts.jsonl")
        self._paths = [model] if os.path.isfile(model) else sorted(filter(os.path.isfile, glob.glob(model)))
        if not self._paths:
            raise UsageError(f"model replay: {model} is no file; name a recording, or a pattern of several")
        self._files: list[int] = []
        self._answers: dict[bytes, list[_Answer]] = {}
        self._prefixes = Prefixes(_REMEMBERED)

    async def start(self) -> None:
        """Read the files' prompts.

        Raises:
            UsageError: a file cannot be read, or a line is no rollout.
        """
        for path in self._paths:
            try:
                self._files.append(os.open(path, os.O_RDONLY))
            except OSError as error:
                raise UsageError(f"model replay: cannot read {path}: {error.strerror}") from None
        for file in range(len(self._paths)):
            await asyncio.to_thread(self._index, file)
        if not self._answers:
            raise UsageError(f"model replay: {self.model} holds no answers; name a file of finished rollouts")

    async def stop(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.pop())

    async def generate(self, request: Request) -> Generated:
        """Return the recorded answer.

        Raises:
            CallError: `replay_miss`: no file has this exact prompt.
        """
        digests = list(_digests(map(decode_message, request.messages.encoded)))
        answers = self._answers.get(digests[-1])
        if answers is None:
            raise CallError("replay_miss", self._miss(request, digests))
        answer = self._choose(request, digests, answers)
        recording = self._read(answer)
        messages = recording.messages
        message = messages[answer.index]
        calls = [call for call in recording.calls if call.kind == "generate" and call.fault is None]
        # The opening messages may hold answers too, without a call: count the calls from the end.
        later = sum(1 for each in messages[answer.index :] if each.role == "assistant")
        calls = calls[: len(calls) - later + 1] if later <= len(calls) else []
        call = calls[-1] if calls else None
        finish = (call and call.finish) or ("tool_calls" if message.tool_calls else "stop")
        usage = Usage(call.input_tokens or 0, call.output_tokens or 0) if call else Usage()
        encoded = encode_message(message)
        return Generated(encoded, finish, usage, await self._tokens(request, encoded, calls), recording.model)

    async def _tokens(self, request: Request, answer: bytes, calls: list[CallRecord]) -> Tokens | None:
        """Return the ids of the last of these calls, of its prompt only the part that is new to the rollout."""
        if not calls or calls[-1].tokens is None:
            return None
        whole = prompt = b""
        tokens = RecordedTokens()
        for call in calls:
            tokens = call.tokens or RecordedTokens()
            prompt = whole[: 4 * tokens.prompt_start] + tokens.prompt
            whole = prompt + tokens.output
        return await self._prefixes.tokens(request, answer, prompt, tokens.output, tokens.logprobs, tokens.versions)

    def _index(self, file: int) -> None:
        """Note the place of the answer to each prompt of a file."""
        offset = 0
        path = self._paths[file]
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        messages = _recording(line).messages
                    except (msgspec.DecodeError, UnicodeDecodeError, DataError) as error:
                        reason = " ".join(str(error).split())
                        raise UsageError(f"model replay: {path}:{number} is no rollout: {reason}") from None
                    # The i-th digest is that of the first i messages: the prompt to the message with index i.
                    for index, (message, digest) in enumerate(zip(messages, _digests(messages), strict=False)):
                        if message.role == "assistant" and index:
                            self._answers.setdefault(digest, []).append(_Answer(file, offset, len(line), index))
                offset += len(line)

    def _choose(self, request: Request, digests: list[bytes], answers: list[_Answer]) -> _Answer:
        """Return the answer of several to the same prompt that a rollout gets."""
        number = RolloutId.parse(request.rollout).sample
        if len(answers) == 1:
            return answers[0]
        for digest in digests:
            first = self._answers.get(digest)
            if first is not None:  # its first answer came from this recording; so does this one, if it can
                line = first[number % len(first)]
                same = (answer for answer in answers if (answer.file, answer.offset) == (line.file, line.offset))
                return next(same, answers[number % len(answers)])
        return answers[number % len(answers)]

    def _read(self, answer: _Answer) -> _Recording:
        """Read a line again; of a local file that was just read, this hardly blocks the loop."""
        return _recording(os.pread(self._files[answer.file], answer.length, answer.offset))

    def _miss(self, request: Request, digests: list[bytes]) -> str:
        """Return the text of a miss: the first message that differs from the nearest recording."""
        known = next((i for i in range(len(digests) - 1, 0, -1) if digests[i] in self._answers), 0)
        asked = [_plain(decode_message(turn)) for turn in request.messages.encoded]
        text = f"{self.model} has no answer to this prompt of {len(asked)} messages: "
        if not known:
            return f"{text}no recording begins with {_show(asked[0]) if asked else 'no message'}"
        recorded = [_plain(message) for message in self._read(self._answers[digests[known]][0]).messages]
        for index in range(known, len(asked)):
            if index >= len(recorded):
                return f"{text}the recording ends before message {index + 1}"
            if asked[index] != recorded[index]:
                return f"{text}message {index + 1} is {_show(asked[index])}, recorded was {_show(recorded[index])}"
        return f"{text}the recording has no answer after message {len(asked)}"


def _digests(messages: Iterator[Message] | list[Message]) -> Iterator[bytes]:
    """Yield the digests of the first 0, 1, 2, ... messages."""
    state = hashlib.blake2b(digest_size=16)
    yield state.digest()
    for message in messages:
        state.update(_plain(message))
        state.update(b"\n")
        yield state.digest()


def _plain(message: Message) -> bytes:
    """Return a message in the form in which prompts are compared."""
    if message.reasoning is not None:
        message = msgspec.structs.replace(message, reasoning=None)
    return encode_message(message)


def _show(message: bytes) -> str:
    text = message.decode("utf-8", "replace")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _recording(line: bytes) -> _Recording:
    """Read a line of a file: a rollout of gymq's, or of NeMo Gym's.

    Raises:
        DecodeError: it is neither.
        DataError: it is one of NeMo Gym's with items that are no conversation.
    """
    try:
        rollout = _rollout_decoder.decode(line)
        return _Recording(rollout.messages, rollout.calls, rollout.model_name or "replay")
    except msgspec.ValidationError:
        row = _nemo_gym_decoder.decode(line)
        if row.responses_create_params is None or row.response is None:
            raise
    asked = row.responses_create_params.input or []
    items = [Item(role="user", content=asked)] if isinstance(asked, str) else asked
    if row.responses_create_params.instructions is not None:
        items = [Item(role="system", content=row.responses_create_params.instructions), *items]
    messages = to_messages([*items, *row.response.output], "responses_create_params.input")
    return _Recording(messages, [], row.response.model or "replay")
