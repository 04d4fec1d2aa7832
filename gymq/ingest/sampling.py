"""Sampling parameters of runs and rows: their names and ranges, and likely slips.

An unknown name is passed on, since servers have parameters of their own, unless it resembles a known one. `extra_body`
takes any name.
"""

from __future__ import annotations

import difflib
from typing import Annotated

import msgspec

from gymq.errors import DataError
from gymq.ingest.chat_items import check
from gymq.ingest.schema import check_schema
from gymq.wire.json_types import JsonObject

#: Request fields that gymq itself writes, and no row or run may set.
RESERVED = frozenset(
    {"model", "messages", "input", "prompt", "tools", "functions", "function_call", "stream", "stream_options"}
)

#: Parameters of OpenAI, vLLM, SGLang and OpenRouter that are passed unchecked.
PASSED = frozenset(
    {
        *(
            "add_generation_prompt",
            "add_special_tokens",
            "allowed_token_ids",
            "audio",
            "bad_words",
            "cache_salt",
            "chat_template",
        ),
        *("continue_final_message", "documents", "ebnf", "echo", "ec_transfer_params", "guided_choice", "guided_grammar"),
        *("guided_json", "guided_regex", "ignore_eos", "include", "include_reasoning", "include_stop_str_in_output"),
        *("kv_transfer_params", "length_penalty", "logprob_token_ids", "lora_path", "media_io_kwargs", "min_tokens"),
        *("mm_processor_kwargs", "modalities", "moderation", "plugins", "prediction", "priority", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention", "prompt_logprobs", "provider", "reasoning", "regex"),
        *("repetition_detection", "request_id", "route", "safety_identifier", "separate_reasoning", "service_tier"),
        *("session_id", "skip_special_tokens", "spaces_between_special_tokens", "stop_regex", "stop_token_ids", "store"),
        *("stream_interval", "structured_outputs", "text", "thinking_token_budget", "top_a", "transforms", "truncation"),
        *("truncate_prompt_tokens", "truncation_side", "usage", "use_beam_search", "vllm_xargs", "web_search_options"),
    }
)

#: Names in other libraries, too different from ours for the search by likeness.
_ELSEWHERE = {
    "best_of": "n",
    "max_gen_toks": "max_tokens",
    "max_output_tokens": "max_tokens",
    "num_return_sequences": "n",
    "num_samples": "n",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "temp": "temperature",
}

#: Likeness, from 0 to 1, from which on two names count as one; `max_new_tokens` and `max_tokens` have 0.83, `top_n` and
#: `top_p` 0.8.
_ALIKE = 0.8

#: Bounds of numbers whose range differs between servers: no server takes more.
_HUGE, _INT32 = 1e6, 2**31 - 1


class Sampling(msgspec.Struct):
    """The parameters that have the same form in all servers; null counts as absent."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=_HUGE)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=_INT32)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=_INT32)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=_INT32)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=_INT32)] | None = None
    logprobs: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-_HUGE, le=_HUGE)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-_HUGE, le=_HUGE)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=_HUGE)] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: JsonObject | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    user: str | None = None
    metadata: JsonObject | None = None
    chat_template_kwargs: JsonObject | None = None
    extra_body: JsonObject | None = None


#: The known names.
KNOWN = frozenset(Sampling.__struct_fields__) | PASSED


def check_sampling(sampling: JsonObject, at: str, slips: bool = True) -> JsonObject:
    """Return sampling parameters, checked, without nulls, and with those of `extra_body` beside the others.

    Args:
        sampling: the parameters by name.
        at: their place, for errors.
        slips: whether a name that resembles a known one is refused.

    Raises:
        DataError: a parameter is gymq's to set, of a wrong type, out of its range, or probably misspelt.
    """
    check(sampling, Sampling, at)
    checked = {name: value for name, value in sampling.items() if value is not None}
    extra = checked.pop("extra_body", {})
    if slips:
        for name in checked:
            _check_spelling(name, at)
    if extra:
        check(extra, Sampling, f"{at}.extra_body")
        checked = {name: value for name, value in extra.items() if value is not None} | checked
    for name in sorted(RESERVED & checked.keys()):
        raise DataError(f"{at}.{name} is not for a row to set; remove it")
    if checked.get("n", 1) != 1:
        raise DataError(f"{at}.n must be 1; for more answers to a task use --samples, which makes groups")
    if "response_format" in checked:
        _check_format(checked["response_format"], f"{at}.response_format")
    return checked


def _check_spelling(name: str, at: str) -> None:
    """Refuse an unknown name that resembles a known one."""
    if name in KNOWN or name in RESERVED or name == "n":
        return
    plain = "".join(f"_{char.lower()}" if char.isupper() else char for char in name).replace("-", "_").lstrip("_")
    meant = _ELSEWHERE.get(plain) or next(iter(difflib.get_close_matches(plain, sorted(KNOWN), 1, _ALIKE)), None)
    if meant:
        raise DataError(
            f"{at}.{name[:60]}: did you mean {meant}? If the server knows {name[:60]}, write it into {at}.extra_body"
        )


def _check_format(form: JsonObject, at: str) -> None:
    """Check `response_format`; unknown types pass."""
    kind = form.get("type")
    if not isinstance(kind, str):
        raise DataError(f"{at} has no type; use text, json_object or json_schema")
    if kind != "json_schema":
        return
    inner = form.get("json_schema")
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not isinstance(inner.get("schema"), dict):
        raise DataError(
            f"{at}.json_schema has no name or no schema; give both, as in {{name: answer, schema: {{type: object}}}}"
        )
    check_schema(inner["schema"], f"{at}.json_schema.schema")
