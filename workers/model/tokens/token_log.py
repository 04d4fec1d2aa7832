"""Prompts of exact token ids: sampled ids stand in the next prompt as they were sampled, and are never tokenized again.

A prompt is the previous call's prompt and output, then the tokens of the new text: the end of the answer, as far as the
model did not write it, tool results, messages, the generation prompt. The template renders the conversation up to the answer,
and all of it; where the first text begins the second, the rest is new. Both render the same messages, so a template may
write an answer otherwise than the model did.

Where the template changes text of an earlier prompt (it drops reasoning, say), the prompt is a fork: it goes on from the last
answer before the change, or begins anew.

An image is a placeholder in text and many ids in a prompt. Only new images are expanded; older ones keep their ids and places.
Two images may have the same ids, so the log compares their names too.
"""

from __future__ import annotations

import sys
from array import array
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

import msgspec

from gymq.api.backend import Request
from gymq.cache import byte_cache
from gymq.wire.calls import ImageSpan, Tokens
from gymq.wire.message import Message

from .chat_template import Body, ChatTemplate, TurnEnd
from .token_prompt import Pictures, Prompt, PromptMessage, unpack_ids


class _Entry(msgspec.Struct):
    """A rollout's last call.

    Args:
        ids: of its prompt and its output.
        text: its prompt's text; None: the conversation has lost its answer, so that no prompt goes on from it.
        answers: the answers in the ids.
        answer: the hash of the last answer's message.
        places: the images in the ids.
    """

    ids: array[int]
    text: str | None
    answers: list[PromptMessage]
    answer: int
    places: list[ImageSpan]


class _Plan(NamedTuple):
    """The parts of a prompt.

    Args:
        length: the first ids of the last call that are kept.
        answers: the answers in them.
        new: the ids behind them, with a placeholder for each image.
    """

    length: int
    answers: list[PromptMessage]
    new: list[int]


class TokenLog:
    """The token ids of conversations, from which each prompt goes on.

    Args:
        renderer: the model's template and tokenizer.
        size: bytes that are kept; dropped entries are read from the rollout's records again.
    """

    def __init__(self, renderer: ChatTemplate, size: int) -> None:
        self._renderer = renderer
        self._entries = byte_cache(_weigh, size)
        #: Prompts made, forks among them, and those whose history was read from Redis.
        self.counts = {"prompts": 0, "forks": 0, "reloads": 0}

    async def prompt(self, request: Request, pictures: Pictures | None = None) -> Prompt:
        """Return the prompt of a rollout's next call.

        Args:
            request: the call.
            pictures: the conversation's images, if it has any.

        Raises:
            CallError: `model`: the chat template refuses the conversation, or its images have no place.
        """
        body = _body(request.body)
        entry = self._entries.get(_key(request))
        if not (entry is not None and _newest(entry, request)):
            asked_before = entry is not None or any(map(_assistant, request.messages.encoded))
            entry = None
            if asked_before and request.history is not None:
                entry = self._rebuilt(request, body, await request.history())
        text = self._renderer.render(request.messages, body)
        self.counts["prompts"] += 1
        entry = entry or _Entry(array("i"), None, [], 0, [])
        plan = self._next(entry, list(request.messages), body, text, pictures)
        new, places = plan.new, [place for place in entry.places if place.end <= plan.length]
        if pictures is not None:
            first = len(places)
            new, spans = await pictures.expand(new, first)
            named = zip(spans, pictures.names[first:], strict=True)
            places += [ImageSpan(plan.length + start, plan.length + end, name) for (start, end), name in named]
        ids = entry.ids[: plan.length] + array("i", new)
        start = min(_same(ids, entry.ids), _same_images(places, entry.places, len(ids)))
        forked = start < len(entry.ids)
        self.counts["forks"] += forked
        return Prompt(ids, start, forked, text, plan.answers, places)

    def answered(self, request: Request, prompt: Prompt, output: list[int], message: bytes) -> None:
        """Keep the answer to a prompt.

        Args:
            request: the call.
            prompt: its prompt.
            output: the sampled ids, with the one that ended them.
            message: the encoded message that becomes part of the conversation.
        """
        ids = prompt.ids + array("i", output)
        turn = PromptMessage(len(request.messages), len(prompt.ids), len(ids), len(prompt.text))
        self._keep(request, _Entry(ids, prompt.text, [*prompt.answers, turn], hash(message), prompt.places))

    def _keep(self, request: Request, entry: _Entry) -> _Entry:
        self._entries[_key(request)] = entry
        return entry

    def _rebuilt(self, request: Request, body: Body, history: list[tuple[int, Tokens]]) -> _Entry | None:
        """Return the entry that this log would hold if it had seen the rollout's calls."""
        if not history:
            return None
        self.counts["reloads"] += 1
        ids, answers, places = array("i"), list[PromptMessage](), list[ImageSpan]()
        for index, tokens in history:
            answers = [turn for turn in answers if turn.end <= tokens.prompt_start]
            places = [place for place in places if place.end <= tokens.prompt_start] + tokens.images
            ids = ids[: tokens.prompt_start] + unpack_ids(tokens.prompt)
            start = len(ids)
            ids += unpack_ids(tokens.output)
            answers.append(PromptMessage(index, start, len(ids)))
        messages, last = list(request.messages), answers[-1].index
        if last < len(messages) and messages[last].role == "assistant":
            text = self._renderer.render(messages[:last], body)
            answers[-1].asked = len(text)
            return self._keep(request, _Entry(ids, text, answers, hash(request.messages.encoded[last]), places))
        # The conversation has lost the answer: no prompt goes on from it.
        kept = [turn for turn in answers if turn.index < len(messages) and messages[turn.index].role == "assistant"]
        return _Entry(ids, None, kept, 0, places)

    def _next(self, entry: _Entry, messages: list[Message], body: Body, text: str, pictures: Pictures | None) -> _Plan:
        """Return a prompt that goes on from the last answer that the text still holds, or begins anew."""
        for count in range(len(entry.answers), 0, -1):
            turn, answers = entry.answers[count - 1], entry.answers[:count]
            if entry.text is not None and turn.asked >= 0:
                asked = entry.text[: turn.asked]
            else:
                asked = self._renderer.render(messages[: turn.index], body)
            # The ids stand for the entry's text, which these messages may have changed.
            as_it_was = entry.text is None or entry.text.startswith(asked)
            images = [] if pictures is None else pictures.names[: pictures.before(turn.index)]
            if text.startswith(asked) and as_it_was and images == [p.image for p in entry.places if p.end <= turn.start]:
                end = self._end(entry, turn, asked, messages, body, text)
                if end is not None:
                    return _Plan(turn.end, answers, self._renderer.ids(text[end.at :], end.token))
                # The prompt stands as it stood, but not its answer.
                return _Plan(turn.start, answers[:-1], self._renderer.ids(text[len(asked) :]))
        return _Plan(0, [], self._renderer.ids(text))

    def _end(
        self, entry: _Entry, turn: PromptMessage, asked: str, messages: list[Message], body: Body, text: str
    ) -> TurnEnd | None:
        """Return an answer's end in a text that begins with its prompt's, behind the special token if the model sampled it.

        None: the text has another answer there.
        """
        before = self._renderer.render(messages[: turn.index + 1], body, False)
        if text.startswith(before) and before.startswith(asked) and _has(before[len(asked) :], messages[turn.index]):
            end = self._renderer.turn_end(before)
        else:
            # Some templates write an answer otherwise while it is the last: then the text must repeat the sampled one letter by
            # letter.
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


def _weigh(entry: _Entry) -> int:
    lists = 150 * len(entry.answers) + 200 * len(entry.places)
    return 500 + 4 * len(entry.ids) + sys.getsizeof(entry.text) + lists


def _key(request: Request) -> str:
    return f"{request.rollout}@{request.born}"


def _newest(entry: _Entry, request: Request) -> bool:
    """Return whether an entry is of the rollout's last call: its answer stands in its place, and no later one does."""
    index, encoded = entry.answers[-1].index, request.messages.encoded
    if index >= len(encoded) or hash(encoded[index]) != entry.answer:
        return False
    return request.history is None or not any(map(_assistant, encoded[index + 1 :]))


def _assistant(turn: bytes) -> bool:
    return turn.startswith(b'{"role":"assistant"')


def _has(text: str, message: Message) -> bool:
    """Return whether rendered text holds an answer's text and reasoning."""
    return message.text.strip() in text and (message.reasoning or "").strip() in text


def _same(ids: array[int], others: array[int]) -> int:
    """Return how many first ids are the same."""
    low, high = 0, min(len(ids), len(others))
    if ids[:high] == others[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if ids[low:middle] == others[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _same_images(places: list[ImageSpan], others: list[ImageSpan], length: int) -> int:
    """Return the index up to which two prompts, of which one has this length, have the same images."""
    for pair in zip_longest(places, others):
        if pair[0] != pair[1]:
            return min(place.start for place in pair if place is not None)
    return length
