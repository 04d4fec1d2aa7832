"""What a person asks for with `gymq run` and `gymq produce`: options from the command line and from a file, checked."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gymq import plugins
from gymq.errors import DataError, UsageError
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.sampling import check_sampling
from gymq.ingest.source import fingerprint
from gymq.settings import Settings
from gymq.store.runs import RunConfig
from gymq.wire.ids import MAX_SAMPLE_DIGITS
from gymq.wire.pricing import Prices

#: The largest number of anything: Redis and Lua count beyond it, but what asks for more is a slip of the finger.
MAX_NUMBER = 10**9

#: Characters of an environment's name that its runs' names begin with.
_NAME = 60


#: Options that bound a rollout; the run's record has them under the same names.
_BOUNDS = (
    "max_turns", "max_rollout_tokens", "max_seconds", "max_working_seconds", "max_tool_calls", "call_timeout",
    "infra_retries", "data_retries", "verify_retries", "max_staleness",
)  # fmt: skip


class RunOptions(BaseModel):
    """The options by name, as `--config` has them; `docs/cli.md` tells each."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    data: str
    model: str
    out: str | None = None
    run: str | None = None
    base_url: str | None = None
    api: Literal["chat", "responses", "generate"] | None = None
    token_ids: bool = False
    tokenizer: str | None = None
    rpm: float | None = Field(None, gt=0, le=MAX_NUMBER)
    tpm: float | None = Field(None, gt=0, le=MAX_NUMBER)
    gpu: str | None = None
    gpus: str | None = None
    engine: dict[str, Any] | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    samples: int = Field(1, ge=1, le=10**MAX_SAMPLE_DIGITS)
    limit: int | None = Field(None, ge=1, le=MAX_NUMBER)
    concurrency: int = Field(256, ge=1, le=MAX_NUMBER)
    max_turns: int = Field(30, ge=1, le=MAX_NUMBER)
    max_rollout_tokens: int = Field(0, ge=0, le=MAX_NUMBER)
    max_seconds: float = Field(0.0, ge=0, le=MAX_NUMBER)
    max_working_seconds: float = Field(0.0, ge=0, le=MAX_NUMBER)
    max_tool_calls: int = Field(0, ge=0, le=MAX_NUMBER)
    call_timeout: float = Field(0.0, ge=0, le=MAX_NUMBER)
    infra_retries: int = Field(8, ge=0, le=MAX_NUMBER)
    data_retries: int = Field(0, ge=0, le=MAX_NUMBER)
    verify_retries: int = Field(10, ge=0, le=MAX_NUMBER)
    max_staleness: int | None = Field(None, ge=0, le=MAX_NUMBER)
    batch: int = Field(0, ge=0, le=MAX_NUMBER)
    judge: str = ""
    judge_base_url: str | None = None
    temperature: float | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    agent: str = "tool"
    redis: str | None = None
    prompt_config: str | None = None
    sampling: dict[str, Any] = {}
    prices: str | dict[str, Any] | None = None

    @property
    def prompt(self) -> PromptConfig | None:
        """The prompt file, read.

        Raises:
            UsageError: it cannot be read.
        """
        return None if self.prompt_config is None else PromptConfig.load(self.prompt_config)

    @property
    def price_table(self) -> Prices | None:
        """The prices, read.

        Raises:
            UsageError: they cannot be read.
        """
        return None if self.prices is None else Prices.read(self.prices)

    @property
    def backend_options(self) -> dict[str, Any]:
        """What the model's backend is told besides its name."""
        engine = None if self.engine is None else msgspec.json.encode(self.engine).decode()
        given = {"base_url": self.base_url, "api": self.api, "rpm": self.rpm, "tpm": self.tpm}
        # Other backends know no such options, so they are named only where they are asked for.
        more = {"token_ids": self.token_ids, "tokenizer": self.tokenizer, "gpu": self.gpu, "gpus": self.gpus, "engine": engine}
        more |= {"tool_parser": self.tool_parser, "reasoning_parser": self.reasoning_parser}
        return given | {name: value for name, value in more.items() if value}

    @property
    def judge_options(self) -> dict[str, Any]:
        """What the judge's backend is told besides its name."""
        return {"base_url": self.judge_base_url}

    @property
    def _bounds(self) -> dict[str, Any]:
        """The limits and budgets of a rollout, by name."""
        return {name: getattr(self, name) for name in _BOUNDS}

    @property
    def all_sampling(self) -> dict[str, Any]:
        """The sampling parameters: the file's, then those that have options of their own.

        Raises:
            UsageError: one is not a run's to set.
        """
        given = {**self.sampling, "temperature": self.temperature, "max_tokens": self.max_tokens}
        given = {name: self.sampling.get(name) if value is None else value for name, value in given.items()}
        try:
            json.dumps(given, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"sampling: holds what JSON cannot say ({error}); use plain values only") from None
        try:
            return check_sampling(given, "sampling")
        except DataError as error:
            raise UsageError(str(error)) from None

    def config(self, environment: str, name: str) -> RunConfig:
        """The run's record.

        Args:
            environment: of rows that name none.
            name: the run's name.
        """
        return RunConfig(
            name=name,
            environment=environment,
            agent=self.agent,
            model=self.model,
            samples=self.samples,
            concurrency=self.concurrency,
            batch=self.batch,
            sampling=self.all_sampling,
            created=time.time(),
            judge=self.judge,
            prices=self.price_table,
            **self._bounds,
        )

    def identity(self, environment: str) -> dict[str, Any]:
        """What makes two runs the same one: all that a rollout's outcome depends on.

        Args:
            environment: of rows that name none.
        """
        prompt = self.prompt
        return {
            "environment": environment,
            "data": fingerprint(self.data),
            "model": self.model,
            "base_url": self.base_url,
            "api": self.api,
            "engine": self.engine,
            "tool_parser": self.tool_parser,
            "reasoning_parser": self.reasoning_parser,
            "token_ids": self.token_ids,
            "tokenizer": self.tokenizer,
            "agent": self.agent,
            "samples": self.samples,
            **self._bounds,
            "judge": self.judge,
            "judge_base_url": self.judge_base_url,
            "sampling": self.all_sampling,
            "prompt": None if prompt is None else msgspec.to_builtins(prompt),
        }


def read_run_options(given: dict[str, Any], needed: tuple[str, ...]) -> RunOptions:
    """Join the command line with the file that `--config` names.

    Args:
        given: the options of the command line, None where not given.
        needed: options that must be there.

    Raises:
        UsageError: the file cannot be read, or an option is missing, unknown or wrong.
    """
    path = given.pop("config", None)
    pairs = given.pop("sampling", ())
    stated = {name: value for name, value in given.items() if value is not None}
    merged = {**(_load(path) if path else {}), **stated}
    if pairs:
        there = merged.get("sampling")
        merged["sampling"] = {**(there if isinstance(there, dict) else {}), **_sampling(pairs)}
    missing = [f"--{name}" for name in needed if merged.get(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing; see --help for an example")
    if merged.get("redis") == "env":
        # A command line can be read by all users of the machine, and the URL holds a password.
        merged["redis"] = Settings.from_environment().redis_url
    try:
        return RunOptions.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        where = f"--{name.replace('_', '-')}" if name in stated else f"{path}: {name}"
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{path}: unknown option {name!r}; known: {', '.join(RunOptions.model_fields)}") from None
        raise UsageError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _sampling(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read `NAME=VALUE` pairs; a value that is no JSON is text."""
    found: dict[str, Any] = {}
    for name, text in parse_pairs(pairs, "--sampling").items():
        try:
            found[name] = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            found[name] = text
    return found


def _load(path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; name a --config file that can be read") from None
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not YAML ({' '.join(str(error).split())}); write lines such as samples: 4") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UsageError(f"{path}: is no list of options; write lines such as samples: 4")
    return {str(name).replace("-", "_"): value for name, value in found.items()}


def check_names(environment: str, request: RunOptions) -> None:
    """See at once whether what is named exists, and whether the model's backend takes its options.

    Args:
        environment: of rows that name none.
        request: the options.

    Raises:
        UnknownName, UsageError: something does not exist or makes no sense.
    """
    plugins.environment(environment)
    plugins.agent(request.agent)
    make_backend(request.model, request.backend_options)
    if request.judge and request.judge != request.model:
        make_backend(request.judge, request.judge_options)
    elif request.judge_base_url is not None:
        raise UsageError("--judge-base-url is of another model than the run's own: name it with --judge SPEC")


def make_backend(spec: str, options: dict[str, Any]) -> Any:
    """Make a model's backend, without starting it, to see whether it takes its options.

    Args:
        spec: the model's SPEC.
        options: the backend's options.

    Raises:
        UnknownName, UsageError: there is no such backend, or its options make no sense.
    """
    name, _, model = spec.partition(":")
    return plugins.load(plugins.BACKENDS, name)(model, options)


def run_name(identity: dict[str, Any]) -> str:
    """The name of the run that is defined by something: the same for the same.

    Args:
        identity: what defines it.
    """
    digest = hashlib.blake2b(msgspec.json.encode(identity, order="sorted"), digest_size=5).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', identity['environment'])[:_NAME].lstrip('-_') or 'run'}-{digest}"


def parse_pairs(pairs: tuple[str, ...], option: str = "--option") -> dict[str, str]:
    """Read `KEY=VALUE` pairs.

    Args:
        pairs: as given.
        option: which option they were given with, for the error.

    Raises:
        UsageError: a pair has no `=`.
    """
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise UsageError(f"{option} {pair!r}: write KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
