"""The options of `gymq.run`, with their types: those of `gymq run`, but for what only a command line needs."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class RunKeywords(TypedDict, total=False):
    """The options of a run by name; docs/cli.md explains them, and they have the same defaults there."""

    samples: int
    limit: int | None
    concurrency: int
    max_turns: int
    max_rollout_tokens: int
    max_seconds: float
    max_working_seconds: float
    max_tool_calls: int
    call_timeout: float
    infra_retries: int
    data_retries: int
    verify_retries: int
    max_staleness: int | None
    batch: int
    judge: str
    temperature: float | None
    max_tokens: int | None
    sampling: dict[str, Any]
    agent: str
    prompt_config: str | None
    prices: str | dict[str, Any] | None
    base_url: str | None
    api: Literal["chat", "responses", "generate"] | None
    token_ids: bool
    tokenizer: str | None
    judge_base_url: str | None
    rpm: float | None
    tpm: float | None
    learn: Literal["true", "false"] | None
    min_rpm: float | None
    gpu: str | None
    gpus: str | None
    engine: dict[str, Any] | None
    tool_parser: str | None
    reasoning_parser: str | None
    max_cost: float | None
    max_time: float | None
    retry_failed: bool
    redis: str | None
