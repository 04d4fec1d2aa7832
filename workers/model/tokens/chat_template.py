"""A model's chat template: renders messages to the text of a prompt, and tokenizes text."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from gymq.errors import CallError, one_line
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Message, ToolCall

#: Text of the answer in the conversations by which a template is probed.
_ANSWER = "gymq-answer"

#: The ids that end a turn, as generation configs have them.
Ends = int | Collection[int] | None


class Body(msgspec.Struct):
    """The fields of a request's body that are variables of templates.

    Args:
        tools: the declared tools.
        chat_template_kwargs: further variables, such as `enable_thinking`.
        reasoning_effort: a variable that chat completions have as a field.
    """

    tools: list[JsonObject] = []
    chat_template_kwargs: JsonObject = {}
    reasoning_effort: str | None = None


class TurnEnd(NamedTuple):
    """The end of an answer in rendered text.

    Args:
        at: its offset, characters.
        token: the special token that the template writes there, or "".
    """

    at: int
    token: str


class ChatTemplate:
    """A model's chat template and tokenizer.

    Args:
        tokenizer: a tokenizer of `transformers` with a chat template; no other thread may use it.
        chat_template_kwargs: further variables of the template; a request's own prevail.
        ends: ids besides the tokenizer's EOS that end a turn: `eos_token_id` of the model's generation config.
    """

    def __init__(self, tokenizer: Any, chat_template_kwargs: JsonObject | None = None, ends: Ends = None) -> None:
        self.tokenizer = tokenizer
        self._kwargs = chat_template_kwargs or {}
        eos = tokenizer.eos_token_id
        stated = () if ends is None else (ends,) if isinstance(ends, int) else ends
        #: Ids with which the model ends its turn.
        self.ends = frozenset(id for id in (*stated, eos) if id is not None)
        added = tokenizer.added_tokens_decoder.items()
        #: Special tokens and their ids.
        self.special = {str(token.content): id for id, token in added if token.special}
        self._special = tuple(self.special)

    def render(self, messages: Iterable[Message], body: Body, add_generation_prompt: bool = True) -> str:
        """Return a conversation as text.

        Args:
            messages: the conversation.
            body: the template's variables.
            add_generation_prompt: whether the text ends with what makes the model answer.

        Raises:
            CallError: `model`: the template refuses it.
        """
        return self._apply([self._plain(message) for message in messages], body, add_generation_prompt)

    def _apply(self, plain: list[JsonObject], body: Body, add_generation_prompt: bool) -> str:
        variables = {"add_generation_prompt": add_generation_prompt, **self._kwargs, **body.chat_template_kwargs}
        if body.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", body.reasoning_effort)
        try:
            text: str = self.tokenizer.apply_chat_template(plain, tools=body.tools or None, tokenize=False, **variables)
        except Exception as error:
            raise CallError("model", one_line(f"the model's chat template refuses the conversation: {error}")) from None
        return text

    def ids(self, text: str, after: str = "") -> list[int]:
        """Return the token ids of rendered text.

        Args:
            text: the text.
            after: the special token before it, whose id is left out; some tokenizers look at the text before.
        """
        ids: list[int] = self.tokenizer.encode(after + text, add_special_tokens=False)
        if not after:
            return ids
        if ids[:1] == [self.special[after]]:
            return ids[1:]
        return self.ids(text)

    def text(self, ids: list[int]) -> str:
        """Return the text of sampled ids, without the token that ends them."""
        if ids and ids[-1] in self.ends:
            ids = ids[:-1]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def turn_end(self, text: str) -> TurnEnd:
        """Return the end of the last answer in a text that was rendered without a generation prompt."""
        stripped = text.rstrip()
        if stripped.endswith(self._special):
            token = self._longest(stripped.endswith)
            return TurnEnd(len(stripped) - len(token), token)
        return TurnEnd(len(text) - len(self._tail) if text.endswith(self._tail) else len(text), "")

    def next_end(self, text: str, at: int) -> TurnEnd:
        """Return the end of an answer.

        Args:
            text: rendered text.
            at: where the answer's own text ends, in characters.
        """
        rest = text[at : at + 200].lstrip()
        token = self._longest(rest.startswith)
        return TurnEnd(text.index(token, at), token)

    def ends_turn(self, id: int, token: str) -> bool:
        """Return whether a sampled id ends the turn.

        Args:
            id: the token id.
            token: the special token with which the template ends the turn.
        """
        return id in self.ends or id == self.special.get(token)

    def _longest(self, fits: Any) -> str:
        return max((token for token in self._special if fits(token)), key=len, default="")

    @cached_property
    def _tail(self) -> str:
        """The text that the template writes behind an answer, if it is no special token."""
        text = self.render([Message("user", "?"), Message("assistant", _ANSWER)], Body(), False)
        return text.rpartition(_ANSWER)[2]

    @cached_property
    def _wants(self) -> tuple[bool, bool]:
        """Whether the template wants tool calls with null content, or empty text, and arguments as an object, or as text.

        Templates agree on neither; with the wrong form most fail, and some write `None`.
        """
        for null, objects in ((True, True), (False, True), (True, False), (False, False)):
            function = {"name": _ANSWER, "arguments": {"x": 1} if objects else '{"x": 1}'}
            call = {"id": "a12345678", "type": "function", "function": function}
            answer = {"role": "assistant", "content": None if null else "", "tool_calls": [call]}
            try:
                text = self._apply([{"role": "user", "content": "?"}, answer], Body(), False)
            except CallError:
                continue
            if _ANSWER in text and "None" not in text:
                return null, objects
        return False, True

    @cached_property
    def _parts_only(self) -> bool:
        """Whether the template drops text that is no list of parts, as those of some models with images do."""
        text, parts = (self._repeats(content) for content in (_ANSWER, [{"type": "text", "text": _ANSWER}]))
        return parts and not text

    def _repeats(self, content: Any) -> bool:
        """Return whether the template writes content of this form, of the user and of the model."""
        try:
            text = self._apply([{"role": role, "content": content} for role in ("user", "assistant")], Body(), False)
        except CallError:
            return False
        return text.count(_ANSWER) == 2

    def _plain(self, message: Message) -> JsonObject:
        """Return a message as templates know it."""
        content = _content(message)
        if isinstance(content, str) and self._parts_only:
            content = [{"type": "text", "text": content}]
        plain: JsonObject = {"role": message.role, "content": content}
        if message.reasoning is not None:
            # Templates agree on no name.
            plain["reasoning_content"] = plain["reasoning"] = message.reasoning
        if message.tool_calls:
            null, objects = self._wants
            plain["tool_calls"] = [_tool_call(call, objects) for call in message.tool_calls]
            plain["content"] = plain["content"] or (None if null else "")
        if message.tool_call_id is not None:
            plain["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            plain["name"] = message.name
        return plain


def _content(message: Message) -> Any:
    """Return content as text; as parts only if some are no text, since templates for text alone know no parts."""
    content = message.content
    if not isinstance(content, list):
        return content or ""
    if all(part.get("type") == "text" for part in content):
        return message.text
    return [_part(part) for part in content]


def _part(part: JsonObject) -> JsonObject:
    kind = str(part.get("type")).removesuffix("_url")
    # A template writes an image's placeholder; its data is no part of the text.
    return {"type": kind} if kind == "image" else {**part, "type": kind}


def _tool_call(call: ToolCall, objects: bool) -> JsonObject:
    arguments: Any = call.function.arguments
    if objects:
        try:
            arguments = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            arguments = {}
        if not isinstance(arguments, dict):
            arguments = {}  # many templates would fail on it; the sampled ids hold it as it is
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
