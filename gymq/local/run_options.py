"""The options of `gymq run` and `gymq produce`: one definition for command line, file, checks and the run's identity."""

from __future__ import annotations

import json
import time
from typing import Any, Literal, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from gymq.errors import DataError, UsageError
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.sampling import check_sampling
from gymq.ingest.source import fingerprint
from gymq.store.runs import RunConfig
from gymq.wire.ids import MAX_SAMPLE_DIGITS
from gymq.wire.pricing import Prices

#: Largest value of a number: Redis and Lua count beyond it, but a larger one is a slip of the finger.
MAX_NUMBER = 10**9

#: Receivers of options: the run itself, the backends of its model and its judge, or one command alone.
Receiver = Literal["task", "model", "judge", "run", "produce"]


class Option(msgspec.Struct, frozen=True):
    """The part of an option's definition that its type, default and bounds leave open.

    Args:
        help: the line of `--help`.
        metavar: the value's name in `--help`.
        to: the receiver.
        identity: whether another value makes it another run.
        positive: whether the command line refuses 0, which means "no limit" in a file.
    """

    help: str
    metavar: str | None
    to: Receiver
    identity: bool
    positive: bool


def _option(
    default: Any,
    help: str,
    metavar: str | None = None,
    to: Receiver = "task",
    *,
    ge: int | None = None,
    gt: int | None = None,
    le: int = MAX_NUMBER,
    identity: bool = True,
    positive: bool = False,
) -> Any:
    """Return the field of an option; a lower bound brings the upper one."""
    upper = None if ge is None and gt is None else le
    return Field(default, ge=ge, gt=gt, le=upper, json_schema_extra={"option": Option(help, metavar, to, identity, positive)})  # type: ignore[dict-item]


class RunOptions(BaseModel):
    """The options by name, as `--config` holds them, in the order of `--help`; `docs/cli.md` explains them.

    Those that are stored with a run have the same names in `RunConfig`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    data: str = _option(..., "Rows: .jsonl, .parquet, a saved data set, or PRODUCER:SOURCE.", "ROWS")
    model: str = _option(..., "vllm:NAME, openai:NAME, replay:FILE or scripted.", "SPEC")
    samples: int = _option(
        1, "Rollouts of each task; may be raised later.  [default: 1]", "N", ge=1, le=10**MAX_SAMPLE_DIGITS, identity=False
    )
    limit: int | None = _option(None, "Take only the first N rows; may be raised later.", "N", ge=1, identity=False)
    concurrency: int = _option(256, "Rollouts in flight at once.  [default: 256]", "N", ge=1, identity=False)
    max_turns: int = _option(30, "Answers of the model per rollout.  [default: 30]", "N", ge=1)
    max_rollout_tokens: int = _option(0, "Tokens, in and out, of all its answers.", "N", ge=0, positive=True)
    max_seconds: float = _option(0.0, "Seconds that a rollout may last.", "S", ge=0, positive=True)
    max_working_seconds: float = _option(0.0, "The same, without what its calls waited.", "S", ge=0, positive=True)
    max_tool_calls: int = _option(0, "Tool calls per rollout.", "N", ge=0, positive=True)
    call_timeout: float = _option(0.0, "Seconds of one answer.  [default: the backend's]", "S", ge=0, positive=True)
    infra_retries: int = _option(8, "New tries per rollout after outages.  [default: 8]", "N", ge=0)
    data_retries: int = _option(0, "New tries after other faults.  [default: 0]", "N", ge=0)
    verify_retries: int = _option(10, "New tries of the verifier.  [default: 10]", "N", ge=0)
    max_staleness: int | None = _option(None, "Policy versions that its oldest token may be behind.", "N", ge=0)
    batch: int = _option(0, "Rollouts that the trainer uses for one policy version.", "N", ge=0, identity=False, positive=True)
    judge: str = _option("", "The model that verifiers ask.  [default: the run's model]", "SPEC")
    # Of these four, the identity holds what they yield: the sampling parameters, and the content of the prompt file.
    temperature: float | None = _option(None, "Sampling temperature.", "T", ge=0, identity=False)
    max_tokens: int | None = _option(None, "Tokens of one answer at most.", "N", ge=1, identity=False)
    sampling: dict[str, Any] = _option(
        {}, "A further sampling parameter, as top_p=0.9; may be repeated.", "NAME=VALUE", identity=False
    )
    agent: str = _option("tool", "Which agent decides.  [default: tool]", "NAME")
    prompt_config: str | None = _option(
        None, "Words the prompt from the rows' fields: user: and perhaps system:.", "P.yaml", identity=False
    )
    prices: str | dict[str, Any] | None = _option(
        None, "What a million tokens of each model cost, for the summary.", "P.yaml", identity=False
    )
    base_url: str | None = _option(
        None, "Of openai:NAME: any OpenAI-compatible server; several, with commas.  [default: OpenAI's]", "URL", "model"
    )
    api: Literal["chat", "responses", "generate"] | None = _option(
        None, "Of openai:NAME: which API.  [default: chat]", to="model"
    )
    token_ids: bool = _option(False, "Of openai:NAME on vLLM: ask for token ids and logprobs with every answer.", to="model")
    tokenizer: str | None = _option(
        None, "Of --api generate: the model's tokenizer, a folder or a name.  [default: NAME]", "PATH", "model"
    )
    judge_base_url: str | None = _option(None, "Of --judge openai:NAME.  [default: OpenAI's]", "URL", "judge")
    rpm: float | None = _option(
        None, "Of openai:NAME: requests per minute, of all workers together.", "N", "model", gt=0, identity=False
    )
    tpm: float | None = _option(
        None, "Of openai:NAME: tokens per minute, of all workers together.", "N", "model", gt=0, identity=False
    )
    learn: Literal["true", "false"] | None = _option(
        None, "Of openai:NAME: whether many 429s slow all requests down.  [default: true]", to="model", identity=False
    )
    min_rpm: float | None = _option(
        None, "Of openai:NAME: requests per minute below which they do not.", "N", "model", gt=0, identity=False
    )
    gpu: str | None = _option(
        None, "Of vllm:NAME: its device, or several to split it over; none: a CPU.", "N,..", "model", identity=False
    )
    gpus: str | None = _option(None, "Of vllm:NAME: a worker for each of these devices.", "0-7", "model", identity=False)
    engine: dict[str, Any] | None = _option(None, "Of vllm:NAME: an argument of vLLM's engine.", "KEY=VALUE", "model")
    tool_parser: str | None = _option(None, "Of vllm:NAME: vLLM's, or none.  [default: by the model]", "NAME", "model")
    reasoning_parser: str | None = _option(None, "Of vllm:NAME: vLLM's, or none.  [default: by the model]", "NAME", "model")
    redis: str | None = _option(
        None, "Use this server; env: GYMQ_REDIS_URL.  [default: one of the run's own, beside OUT]", "URL", "run", identity=False
    )
    out: str | None = _option(
        None, "The finished rollouts: a .jsonl file, or a .parquet folder of parts.", "ROLLOUTS.jsonl", "run", identity=False
    )
    max_cost: float | None = _option(
        None, "Stop before this command's rollouts cost more, by --prices.", "COST", "run", gt=0, identity=False
    )
    max_time: float | None = _option(None, "Stop this command after so many seconds.", "S", "run", gt=0, identity=False)
    retry_failed: bool = _option(
        False, "Do again what failed or was cancelled: its lines in OUT give way.", to="run", identity=False
    )
    run: str | None = _option(None, "The run; made if there is none of that name.", "RUN", "produce", identity=False)

    @property
    def prompt(self) -> PromptConfig | None:
        """The templates of the prompt file.

        Raises:
            UsageError: the file cannot be read.
        """
        return None if self.prompt_config is None else PromptConfig.load(self.prompt_config)

    @property
    def price_table(self) -> Prices | None:
        """The table of prices.

        Raises:
            UsageError: its file cannot be read.
        """
        return None if self.prices is None else Prices.read(self.prices)

    @property
    def backend_options(self) -> dict[str, Any]:
        """The options of the model's backend that are given: other backends than the one that knows an option refuse it."""
        given = {name: getattr(self, name) for name, option in OPTIONS.items() if option.to == "model"}
        given |= {"engine": self.engine and msgspec.json.encode(self.engine).decode()}
        return {name: value for name, value in given.items() if value}

    @property
    def judge_options(self) -> dict[str, Any]:
        """The options of the judge's backend."""
        return {"base_url": self.judge_base_url}

    @property
    def all_sampling(self) -> dict[str, Any]:
        """The sampling parameters: the file's, then those that have options of their own.

        Raises:
            UsageError: a parameter is not a run's to set.
        """
        stated = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        given = self.sampling | {name: value for name, value in stated.items() if value is not None}
        try:
            json.dumps(given, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"sampling: holds what JSON cannot say ({error}); use plain values only") from None
        try:
            return check_sampling(given, "sampling")
        except DataError as error:
            raise UsageError(str(error)) from None

    def config(self, environment: str, name: str) -> RunConfig:
        """Return the run's record.

        Args:
            environment: the environment of rows that name none.
            name: the run's name.
        """
        stored = {field: getattr(self, field) for field in RunConfig.__struct_fields__ if field in OPTIONS}
        stored |= {"sampling": self.all_sampling, "prices": self.price_table}
        return RunConfig(name=name, environment=environment, created=time.time(), **stored)

    def identity(self, environment: str) -> dict[str, Any]:
        """Return all that a rollout's outcome depends on: two runs with the same identity are the same run.

        Args:
            environment: the environment of rows that name none.
        """
        return {
            "environment": environment,
            **{name: getattr(self, name) for name, option in OPTIONS.items() if option.identity},
            "data": fingerprint(self.data),
            "sampling": self.all_sampling,
            "prompt": msgspec.to_builtins(self.prompt),
        }


#: The definitions of the options, by name.
OPTIONS = {name: cast(Option, cast(Any, field.json_schema_extra)["option"]) for name, field in RunOptions.model_fields.items()}
