"""Prompts of exact token ids: what a model sampled stands in its next prompt as it was sampled, and is not tokenized again.

The prompt of a turn is the previous turn's prompt and output, then the tokens of what is new: the end of the answer, as far
as the model did not write it, tool results, messages, the generation prompt. What is new is found in text. The template
renders the conversation up to the answer, and all of it; where the first is how the second begins, the rest is new. Both
render the same messages, so it does not matter that a template would write an answer otherwise than the model did.

Where the template takes back what an earlier prompt held (it drops reasoning, say), the prompt is a fork: it goes on from
the last answer before the change, or begins anew.
"""

from __future__ import annotations

import struct
import sys
from array import array
from functools import lru_cache
from typing import Any

import msgspec

from gymq.backend import Request
from gymq.cache import Cache
from gymq.call import Tokens
from gymq.message import Message

from .render import Body, Renderer, TurnEnd


class Turn(msgspec.Struct):
    """An answer in a chain of ids.

    Args:
        index: the index of its message.
        start: how many ids there are before it: its prompt.
        end: how many there are up to its end.
        asked: how many characters of the entry's text its prompt was; -1: not known.
    """

    index: int
    start: int
    end: int
    asked: int = -1


class Prompt(msgspec.Struct):
    """The next call's prompt.

    Args:
        ids: its token ids, int32.
        start: so many first ids are those of the rollout's previous call, its prompt and its output.
        forked: whether those are not all of them: the template rewrote what came before.
        text: what the template rendered.
        turns: the answers that stand in it as they were sampled.
    """

    ids: array[int]
    start: int
    forked: bool
    text: str
    turns: list[Turn]

    def tokens(self, output: list[int], logprobs: list[float], versions: list[tuple[int, int]]) -> Tokens:
        """Pack the call's tokens for its record.

        Args:
            output: the sampled ids.
            logprobs: one for each, or none.
            versions: see `Tokens`.
        """
        new = self.ids[self.start :]
        return Tokens(
            self.start,
            struct.pack(f"<{len(new)}i", *new),
            struct.pack(f"<{len(output)}i", *output),
            struct.pack(f"<{len(logprobs)}f", *logprobs),
            versions,
        )


class _Entry(msgspec.Struct):
    """A rollout's last call: the ids of prompt and output, the prompt's text, and the message that it gave.

    Where the conversation has lost that message, `text` is None: nothing goes on from the call itself.
    """

    ids: array[int]
    text: str | None
    turns: list[Turn]
    answer: int


class TokenLog:
    """The token ids of conversations, so that each prompt goes on from the last.

    Args:
        renderer: the model's template and tokenizer.
        size: bytes to keep; what was dropped is read from the rollout's records again.
    """

    def __init__(self, renderer: Renderer, size: int) -> None:
        self._renderer = renderer
        self._entries: Cache[_Entry] = Cache(size)
        #: Prompts made, those that forked, and those whose history was read from Redis.
        self.counts = {"prompts": 0, "forks": 0, "reloads": 0}

    async def prompt(self, request: Request) -> Prompt:
        """The prompt of a rollout's next call.

        Raises:
            CallError: `model`: the chat template refuses the conversation.
        """
        body = _body(request.body)
        entry = self._entries.get(_key(request))
        if not (entry is not None and _newest(entry, request)):
            asked_before = entry is not None or any(map(_assistant, request.messages.turns))
            entry = None
            if asked_before and request.history is not None:
                entry = self._rebuilt(request, body, await request.history())
        text = self._renderer.render(request.messages, body)
        self.counts["prompts"] += 1
        if entry is None:
            return Prompt(array("i", self._renderer.ids(text)), 0, False, text, [])
        prompt = self._next(entry, list(request.messages), body, text)
        self.counts["forks"] += prompt.forked
        return prompt

    def answered(self, request: Request, prompt: Prompt, output: list[int], message: bytes) -> None:
        """Note the answer to a prompt.

        Args:
            request: what was asked.
            prompt: its prompt.
            output: the sampled ids, with the one that ended them.
            message: the encoded message that becomes part of the conversation.
        """
        ids = prompt.ids + array("i", output)
        turn = Turn(len(request.messages), len(prompt.ids), len(ids), len(prompt.text))
        self._keep(request, ids, prompt.text, [*prompt.turns, turn], message)

    def _keep(self, request: Request, ids: array[int], text: str, turns: list[Turn], message: bytes) -> _Entry:
        entry = _Entry(ids, text, turns, hash(message))
        self._entries.put(_key(request), entry, 500 + 4 * len(ids) + sys.getsizeof(text) + 150 * len(turns))
        return entry

    def _rebuilt(self, request: Request, body: Body, history: list[tuple[int, Tokens]]) -> _Entry | None:
        """What this log would hold if it had seen the rollout's calls."""
        if not history:
            return None
        self.counts["reloads"] += 1
        ids, turns = array("i"), list[Turn]()
        for index, tokens in history:
            turns = [turn for turn in turns if turn.end <= tokens.prompt_start]
            ids = ids[: tokens.prompt_start] + _unpacked(tokens.prompt)
            start = len(ids)
            ids += _unpacked(tokens.output)
            turns.append(Turn(index, start, len(ids)))
        messages, last = list(request.messages), turns[-1].index
        if last < len(messages) and messages[last].role == "assistant":
            text = self._renderer.render(messages[:last], body)
            turns[-1].asked = len(text)
            return self._keep(request, ids, text, turns, request.messages.turns[last])
        # The answer was taken back: nothing goes on from it.
        there = [turn for turn in turns if turn.index < len(messages) and messages[turn.index].role == "assistant"]
        return _Entry(ids, None, there, 0)

    def _next(self, entry: _Entry, messages: list[Message], body: Body, text: str) -> Prompt:
        """Go on from the last answer if the text does, else from one before it, else begin anew."""
        for count in range(len(entry.turns), 0, -1):
            turn, turns = entry.turns[count - 1], entry.turns[:count]
            if entry.text is not None and turn.asked >= 0:
                asked = entry.text[: turn.asked]
            else:
                asked = self._renderer.render(messages[: turn.index], body)
            # The ids stand for the entry's text, and it may not be that of these messages any more.
            if text.startswith(asked) and (entry.text is None or entry.text.startswith(asked)):
                end = self._end(entry, turn, asked, messages, body, text)
                if end is not None:
                    return self._go_on(entry, turn.end, turns, text, end.at, end.token)
                # All that the model saw stands as it stood, but not what it said.
                return self._go_on(entry, turn.start, turns[:-1], text, len(asked), "")
        return self._go_on(entry, 0, [], text, 0, "")

    def _go_on(self, entry: _Entry, length: int, turns: list[Turn], text: str, at: int, after: str) -> Prompt:
        """Keep so many ids, and tokenize what the text has behind what they stand for."""
        ids = entry.ids[:length] + array("i", self._renderer.ids(text[at:], after))
        start = _same(ids, entry.ids)
        return Prompt(ids, start, start < len(entry.ids), text, turns)

    def _end(self, entry: _Entry, turn: Turn, asked: str, messages: list[Message], body: Body, text: str) -> TurnEnd | None:
        """Where an answer ends in a text that begins with its prompt's, behind the special token that ends it if the model
        sampled one; None if the text has another answer there.
        """
        before = self._renderer.render(messages[: turn.index + 1], body, False)
        if text.startswith(before) and before.startswith(asked) and _has(before[len(asked) :], messages[turn.index]):
            end = self._renderer.turn_end(before)
        else:
            # Some templates write an answer otherwise while it is the last: then what counts is whether the text repeats the
            # sampled one letter by letter.
            sampled = self._renderer.text(entry.ids[turn.start : turn.end].tolist())
            if not sampled or not text.startswith(sampled, len(asked)):
                return None
            end = self._renderer.next_end(text, len(asked) + len(sampled))
        ended = turn.end > turn.start and self._renderer.ends_turn(entry.ids[turn.end - 1], end.token)
        return TurnEnd(end.at + len(end.token), end.token) if ended else TurnEnd(end.at, "")


_decoder = msgspec.json.Decoder(Body)


# Most rollouts of a run have the same body.
@lru_cache(maxsize=256)
def _body(data: bytes) -> Body:
    return _decoder.decode(data)


def _key(request: Request) -> str:
    return f"{request.rollout}@{request.born}"


def _newest(entry: _Entry, request: Request) -> bool:
    """Whether a rollout's last known call is its last: nobody else has answered since, and its answer stands in its place."""
    index, turns = entry.turns[-1].index, request.messages.turns
    if index >= len(turns) or hash(turns[index]) != entry.answer:
        return False
    return request.history is None or not any(map(_assistant, turns[index + 1 :]))


def _assistant(turn: bytes) -> bool:
    return turn.startswith(b'{"role":"assistant"')


def _has(text: str, message: Message) -> bool:
    """Whether an answer's text and reasoning stand in what the template made of it."""
    return message.text.strip() in text and (message.reasoning or "").strip() in text


def _unpacked(packed: bytes) -> array[int]:
    return array("i", struct.unpack(f"<{len(packed) // 4}i", packed))


def _same(one: Any, other: Any) -> int:
    """How many first elements of two sequences are the same."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
