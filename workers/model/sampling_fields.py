"""Fields of chat completions by their meaning, for the backends that translate them to vLLM's sampling parameters."""

from __future__ import annotations

#: Fields that are sampling parameters.
SAMPLING_FIELDS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"),
        *("max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "logit_bias", "bad_words"),
        *("allowed_token_ids", "thinking_token_budget", "include_stop_str_in_output", "repetition_detection"),
    }
)

#: Fields about tools and about rendering the prompt.
PROMPT_FIELDS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort"})

#: Fields that concern servers only, or ask for parts of the answer that are always given.
SERVER_FIELDS = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"),
        *("logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids", "include_reasoning"),
    }
)
