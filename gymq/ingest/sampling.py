"""Sampling parameters, of a run and of a row: what they are called, what they may be, and what is probably a slip.

A name that no list knows is passed on: servers have parameters of their own. Only where it looks like a known one it is
refused; who means it writes it into `extra_body`, where names are not looked at.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import msgspec

from gymq.errors import DataError
from gymq.ingest.chat_items import check
from gymq.ingest.schema import check_schema

#: What a row or a run may not set, since gymq itself writes it into the request.
RESERVED = frozenset(
    {"model", "messages", "input", "prompt", "tools", "functions", "function_call", "stream", "stream_options"}
)

#: Parameters that servers take under these names and gymq passes as they are: OpenAI's, vLLM's, SGLang's, OpenRouter's.
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

#: Names of other libraries that no likeness would find.
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

#: How alike two names must be to be taken for one, of 1; `max_new_tokens` and `max_tokens` are 0.83, `top_n` and `top_p` 0.8.
_ALIKE = 0.8

#: Bounds of numbers whose range servers do not agree on: beyond them, nobody takes them.
_HUGE, _INT32 = 1e6, 2**31 - 1


class Sampling(msgspec.Struct):
    """The parameters whose form all servers agree on; null counts as absent."""

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
    response_format: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    extra_body: dict[str, Any] | None = None


#: Every name that is taken as it is.
KNOWN = frozenset(Sampling.__struct_fields__) | PASSED


def check_sampling(sampling: dict[str, Any], at: str, slips: bool = True) -> dict[str, Any]:
    """Check sampling parameters; nulls are dropped, and what stands in `extra_body` stands beside the others afterwards.

    Args:
        sampling: the parameters by name.
        at: what to call them in errors.
        slips: whether a name that looks like a known one is refused.

    Raises:
        DataError: one is gymq's to set, or of a wrong type, out of its range, or probably misspelt.
    """
    check(sampling, Sampling, at)
    given = {name: value for name, value in sampling.items() if value is not None}
    extra = given.pop("extra_body", {})
    if slips:
        for name in given:
            _slip(name, at)
    if extra:
        check(extra, Sampling, f"{at}.extra_body")
        given = {name: value for name, value in extra.items() if value is not None} | given
    for name in sorted(RESERVED & given.keys()):
        raise DataError(f"{at}.{name} is not for a row to set; remove it")
    if given.get("n", 1) != 1:
        raise DataError(f"{at}.n must be 1; for more answers to a task use --samples, which makes groups")
    if "response_format" in given:
        _check_format(given["response_format"], f"{at}.response_format")
    return given


def _slip(name: str, at: str) -> None:
    """Refuse a name that is nearly another one."""
    if name in KNOWN or name in RESERVED or name == "n":
        return
    plain = "".join(f"_{char.lower()}" if char.isupper() else char for char in name).replace("-", "_").lstrip("_")
    meant = _ELSEWHERE.get(plain) or next(iter(difflib.get_close_matches(plain, sorted(KNOWN), 1, _ALIKE)), None)
    if meant:
        raise DataError(
            f"{at}.{name[:60]}: did you mean {meant}? If the server knows {name[:60]}, write it into {at}.extra_body"
        )


def _check_format(form: dict[str, Any], at: str) -> None:
    """Check `response_format`; types that gymq does not know are passed."""
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
