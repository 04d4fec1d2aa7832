"""Conversion of `responses_create_params`, in NeMo Gym's rows, into chat-completions parameters.

Each field is passed to the model under its chat-completions name, kept in the task's fields, or refused. docs/tasks.md has
the table.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from gymq.errors import DataError
from gymq.ingest.chat_items import MAX_DEPTH, Item, check, too_deep
from gymq.ingest.sampling import Sampling, check_sampling
from gymq.wire.json_types import JsonObject
from gymq.wire.message import FUNCTION_NAME

#: Fields that pass under their own names: those of both APIs, of chat completions alone, and of vLLM.
_PASSED = frozenset(
    {
        *("temperature", "top_p", "user", "service_tier", "store", "safety_identifier", "prompt_cache_key"),
        *("seed", "stop", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "max_tokens"),
        *("max_completion_tokens", "reasoning_effort", "response_format", "verbosity"),
        *("top_k", "min_p", "repetition_penalty", "chat_template_kwargs"),
    }
)

#: Fields that are converted or refused.
_TURNED = frozenset(
    {
        *("input", "instructions", "tools", "max_output_tokens", "metadata", "parallel_tool_calls", "reasoning", "text"),
        *("tool_choice", "top_logprobs", "background", "stream", "previous_response_id", "prompt", "conversation"),
    }
)

#: The largest number of tokens that a field may name.
_INT32 = 2**31 - 1

_AUDIO = ("audio_data", "audio_path", "audio_paths")


class Reasoning(msgspec.Struct):
    """The extent of the model's reasoning."""

    effort: str | None = None


class Format(msgspec.Struct):
    """The form of the answer's text."""

    type: str | None = None
    name: str | None = None
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None


class Text(msgspec.Struct):
    """Settings of the answer's text."""

    format: Format | None = None
    verbosity: str | None = None


class FunctionTool(msgspec.Struct):
    """A tool of the Responses API (flat) or of chat completions (under `function`)."""

    type: str | None = None
    function: JsonObject | None = None
    name: str | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Declared(msgspec.Struct):
    """The checked fields under `function` of a chat-completions tool; other fields are passed unchecked."""

    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Params(msgspec.Struct):
    """The checked fields of `responses_create_params`; null counts as absent."""

    input: str | list[Item] | None = None
    instructions: str | None = None
    tools: list[FunctionTool] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=_INT32)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=_INT32)] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: str | JsonObject | None = None
    metadata: dict[str, str] | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    user: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    previous_response_id: Any = None
    prompt: Any = None
    conversation: Any = None


def to_sampling(params: Params, row_params: JsonObject, at: str) -> JsonObject:
    """Convert the sampling fields to chat-completions parameters.

    Args:
        params: the checked fields.
        row_params: all fields, as decoded.
        at: their place in the row, for errors.

    Raises:
        DataError: a field has no equivalent in chat completions.
    """
    _refuse(params, at)
    sampling = _metadata(params.metadata, at)
    passed = {name: value for name, value in row_params.items() if name in _PASSED and value is not None}
    check(passed, Sampling, at)
    sampling |= passed
    if params.max_output_tokens is not None:
        sampling["max_tokens"] = params.max_output_tokens
    if params.top_logprobs is not None:
        sampling |= {"logprobs": True, "top_logprobs": params.top_logprobs}
    if params.reasoning is not None and params.reasoning.effort is not None:
        sampling["reasoning_effort"] = params.reasoning.effort
    if params.text is not None:
        if params.text.format is not None:
            sampling |= _response_format(params.text.format, f"{at}.text.format")
        if params.text.verbosity is not None:
            sampling["verbosity"] = params.text.verbosity
    # Servers refuse these fields without tools, so defaults are left out, and without tools all of them.
    if params.tools != []:
        if params.parallel_tool_calls is False:
            sampling["parallel_tool_calls"] = False
        if params.tool_choice not in (None, "auto"):
            sampling["tool_choice"] = _tool_choice(params.tool_choice, f"{at}.tool_choice")
    return check_sampling(sampling, f"{at}.metadata.extra_body", slips=False)


def leftovers(row_params: JsonObject) -> JsonObject:
    """Return the fields that no request takes and the task keeps: `model`, `include`, `truncation`, ..."""
    return {
        name: value for name, value in row_params.items() if value is not None and name not in _TURNED and name not in _PASSED
    } | _rest_of_reasoning(row_params.get("reasoning"))


def to_tools(tools: list[FunctionTool], at: str) -> list[JsonObject]:
    """Convert tools of either API to chat-completions tools.

    Args:
        tools: the tools.
        at: their place in the row, for errors.

    Raises:
        DataError: a tool is no function, has no valid name, or has the name of an earlier one.
    """
    converted = [_tool(tool, f"{at}[{index}]") for index, tool in enumerate(tools)]
    names: set[str] = set()
    for index, tool in enumerate(converted):
        name = tool["function"]["name"]
        if name in names:
            raise DataError(f"{at}[{index}] is a second tool {name!r}; give each its own name")
        names.add(name)
    return converted


def _tool(tool: FunctionTool, at: str) -> JsonObject:
    if tool.type not in ("function", None):
        raise DataError(
            f"{at} is a {tool.type[:60]!r} tool, which only OpenAI's own servers can run; remove it, or make it a function"
        )
    function = tool.function
    if function is None:
        function = {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict,
        }
    name = function.get("name")
    if not isinstance(name, str):
        raise DataError(f"{at} has no name; give the function one")
    if not FUNCTION_NAME.fullmatch(name):
        raise DataError(f"{at}.name is {name[:60]!r}; a function's name has 1 to 64 letters, digits, '_' or '-'")
    check(function, Declared, f"{at}.function")
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _refuse(params: Params, at: str) -> None:
    for name in ("previous_response_id", "prompt", "conversation"):
        if getattr(params, name) is not None:
            raise DataError(f"{at}.{name} points at what an OpenAI server keeps; write the whole conversation into input")
    for name in ("background", "stream"):
        if getattr(params, name):
            raise DataError(f"{at}.{name} cannot be true in a rollout; remove it")


def _metadata(metadata: dict[str, str] | None, at: str) -> JsonObject:
    """Return the request parameters that NeMo Gym lets metadata carry as JSON text; other metadata goes to the server."""
    if not metadata:
        return {}
    at = f"{at}.metadata"
    for name in _AUDIO:
        if metadata.get(name):
            raise DataError(f"{at}.{name} is not read; put the audio into a message as an input_audio or audio_url part")
    sampling = _object(metadata.get("extra_body"), f"{at}.extra_body")
    template = _object(metadata.get("chat_template_kwargs"), f"{at}.chat_template_kwargs")
    if template:
        sampling["chat_template_kwargs"] = template
    rest = {name: value for name, value in metadata.items() if name not in ("extra_body", "chat_template_kwargs")}
    return sampling | ({"metadata": rest} if rest else {})


def _object(text: str | None, at: str) -> JsonObject:
    try:
        value = msgspec.json.decode(text, type=JsonObject) if text else {}
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise DataError(f"{at} is not the text of a JSON object; write it as one") from None
    if text and too_deep(value, text.encode()):
        raise DataError(f"{at} is nested more than {MAX_DEPTH} levels deep; flatten it")
    return value


def _response_format(form: Format, at: str) -> JsonObject:
    if form.type in (None, "text"):
        return {}
    if form.type == "json_object":
        return {"response_format": {"type": "json_object"}}
    if form.type != "json_schema":
        raise DataError(f"{at}.type is {form.type[:60]!r}; use text, json_object or json_schema")
    if form.name is None or form.schema is None:
        raise DataError(f"{at} has no name or no schema; give both")
    fields = {"name": form.name, "description": form.description, "schema": form.schema, "strict": form.strict}
    schema = {name: value for name, value in fields.items() if value is not None}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _tool_choice(choice: str | JsonObject | None, at: str) -> str | JsonObject:
    if isinstance(choice, str) and choice in ("none", "required"):
        return choice
    if isinstance(choice, dict):
        if choice.get("type") == "function":
            named = choice.get("function") or choice
            if isinstance(named, dict) and isinstance(named.get("name"), str):
                return {"type": "function", "function": {"name": named["name"]}}
        if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
            allowed = to_tools(check(choice["tools"], list[FunctionTool], f"{at}.tools"), f"{at}.tools")
            return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode") or "auto", "tools": allowed}}
    raise DataError(f"{at} cannot be asked of a model; use auto, none, required, a function or allowed_tools")


def _rest_of_reasoning(reasoning: JsonObject | None) -> JsonObject:
    rest = {name: value for name, value in (reasoning or {}).items() if name != "effort" and value is not None}
    return {"reasoning": rest} if rest else {}
