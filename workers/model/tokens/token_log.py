"""Prompts of exact token ids: what a model sampled stands in its next prompt as it was sampled, and is not tokenized again.

The prompt of a turn is the previous turn's prompt and output, then the tokens of what is new: the end of the answer, as far
as the model did not write it, tool results, messages, the generation prompt. What is new is found in text. The template
renders the conversation up to the answer, and all of it; where the first is how the second begins, the rest is new. Both
render the same messages, so it does not matter that a template would write an answer otherwise than the model did.

Where the template takes back what an earlier prompt held (it drops reasoning, say), the prompt is a fork: it goes on from
the last answer before the change, or begins anew.

An image is a placeholder in text and many ids in a prompt. Only what is new is expanded; what was expanded once is kept like
everything else, with the place where it is. Two images may have the same ids, so the log compares the images, too.
"""

from __future__ import annotations

import sys
from array import array
from functools import lru_cache
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec

from gymq.api.backend import Request
from gymq.cache import Cache
from gymq.wire.calls import ImageSpan, Tokens
from gymq.wire.message import Message

from .chat_template import Body, ChatTemplate, TurnEnd
from .token_prompt import Pictures, Prompt, PromptMessage, unpack_ids


class _Entry(msgspec.Struct):
    """A rollout's last call: the ids of prompt and output, the prompt's text, and the message that it gave.

    Where the conversation has lost that message, `text` is None: nothing goes on from the call itself.
    """

    ids: array[int]
    text: str | None
    answers: list[PromptMessage]
    answer: int
    places: list[ImageSpan]


class _Plan(NamedTuple):
    """How a prompt is made.

    Args:
        length: so many first ids of the last call are kept.
        answers: the answers in them.
        new: the ids behind them, with a placeholder for each image.
    """

    length: int
    answers: list[PromptMessage]
    new: list[int]


class TokenLog:
    """The token ids of conversations, so that each prompt goes on from the last.

    Args:
        renderer: the model's template and tokenizer.
        size: bytes to keep; what was dropped is read from the rollout's records again.
    """

    def __init__(self, renderer: ChatTemplate, size: int) -> None:
        self._renderer = renderer
        self._entries: Cache[_Entry] = Cache(size)
        #: Prompts made, those that forked, and those whose history was read from Redis.
        self.counts = {"prompts": 0, "forks": 0, "reloads": 0}

    async def prompt(self, request: Request, pictures: Pictures | None = None) -> Prompt:
        """The prompt of a rollout's next call.

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
        """Note the answer to a prompt.

        Args:
            request: what was asked.
            prompt: its prompt.
            output: the sampled ids, with the one that ended them.
            message: the encoded message that becomes part of the conversation.
        """
        ids = prompt.ids + array("i", output)
        turn = PromptMessage(len(request.messages), len(prompt.ids), len(ids), len(prompt.text))
        self._keep(request, _Entry(ids, prompt.text, [*prompt.answers, turn], hash(message), prompt.places))

    def _keep(self, request: Request, entry: _Entry) -> _Entry:
        lists = 150 * len(entry.answers) + 200 * len(entry.places)
        self._entries.put(_key(request), entry, 500 + 4 * len(entry.ids) + sys.getsizeof(entry.text) + lists)
        return entry

    def _rebuilt(self, request: Request, body: Body, history: list[tuple[int, Tokens]]) -> _Entry | None:
        """What this log would hold if it had seen the rollout's calls."""
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
        # The answer was taken back: nothing goes on from it.
        there = [turn for turn in answers if turn.index < len(messages) and messages[turn.index].role == "assistant"]
        return _Entry(ids, None, there, 0, places)

    def _next(self, entry: _Entry, messages: list[Message], body: Body, text: str, pictures: Pictures | None) -> _Plan:
        """Go on from the last answer if the text does, else from one before it, else begin anew."""
        for count in range(len(entry.answers), 0, -1):
            turn, answers = entry.answers[count - 1], entry.answers[:count]
            if entry.text is not None and turn.asked >= 0:
                asked = entry.text[: turn.asked]
            else:
                asked = self._renderer.render(messages[: turn.index], body)
            # The ids stand for the entry's text, and it may not be that of these messages any more.
            as_it_was = entry.text is None or entry.text.startswith(asked)
            images = [] if pictures is None else pictures.names[: pictures.before(turn.index)]
            if text.startswith(asked) and as_it_was and images == [p.image for p in entry.places if p.end <= turn.start]:
                end = self._end(entry, turn, asked, messages, body, text)
                if end is not None:
                    return _Plan(turn.end, answers, self._renderer.ids(text[end.at :], end.token))
                # All that the model saw stands as it stood, but not what it said.
                return _Plan(turn.start, answers[:-1], self._renderer.ids(text[len(asked) :]))
        return _Plan(0, [], self._renderer.ids(text))

    def _end(
        self, entry: _Entry, turn: PromptMessage, asked: str, messages: list[Message], body: Body, text: str
    ) -> TurnEnd | None:
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
    index, encoded = entry.answers[-1].index, request.messages.encoded
    if index >= len(encoded) or hash(encoded[index]) != entry.answer:
        return False
    return request.history is None or not any(map(_assistant, encoded[index + 1 :]))


def _assistant(turn: bytes) -> bool:
    return turn.startswith(b'{"role":"assistant"')


def _has(text: str, message: Message) -> bool:
    """Whether an answer's text and reasoning stand in what the template made of it."""
    return message.text.strip() in text and (message.reasoning or "").strip() in text


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


def _same_images(one: list[ImageSpan], other: list[ImageSpan], most: int) -> int:
    """Up to which index two prompts have the same images."""
    for here, there in zip_longest(one, other):
        if here != there:
            return min(place.start for place in (here, there) if place is not None)
    return most
