"""A vLLM engine that this process hosts: token ids in, token ids out, weights that change, and its load.

vLLM keeps the model in processes of its own (one per device); `Engine` is their client. It imports vLLM as it starts, once the
environment variables say which devices vLLM may use.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from gymq.errors import CallError, GymqError, one_line
from gymq.wire.json_types import JsonObject

from ..tokens.chat_template import Ends
from .load import EngineLoad
from .options import VllmOptions
from .process import HOSTED

log = logging.getLogger(__name__)

#: Treatments of calls in flight as weights change: freeze them, let them end, begin them anew.
MODES = ("keep", "wait", "abort")

#: Seconds that the engine's processes may take to end; then they are killed, which loses nothing.
STOP_LIMIT = 5.0

#: The class that extends vLLM's workers on a CPU.
EXTENSION = "gymq_workers.model.vllm.process.Extension"


class Sampled(msgspec.Struct):
    """A sampled answer.

    Args:
        ids: the sampled token ids, the one that ended it included.
        logprobs: one per id, of the model's own distribution (before temperature, top_p and the like), and with a grammar of
            that over the tokens that it allows.
        versions: runs `(index of the first id, policy version)`, ascending.
        finish: `stop` or `length`.
        ended_by: the stop string that ended it; None: a token did, or the length.
        text: the text without the stop string, if it was asked for; else "".
        cached: tokens of the prompt that were in the prefix cache.
        reasoning: sampled tokens that are reasoning, as far as the parser counts them.
    """

    ids: list[int]
    logprobs: list[float]
    versions: list[tuple[int, int]]
    finish: str
    ended_by: str | None = None
    text: str = ""
    cached: int = 0
    reasoning: int = 0


class Engine:
    """A vLLM engine; see `VllmOptions`.

    Args:
        options: its options.
    """

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._llm: Any = None
        self._updating = asyncio.Lock()
        self._count = 0
        self.load = EngineLoad()
        #: Whether it runs on a CPU.
        self.on_cpu = False
        #: Tokens of a prompt and its answer together, at most.
        self.longest = 0
        #: Why it can answer no more, in one line; "": it can.
        self.broken = ""

    def start(self) -> None:
        """Load the model; takes from seconds to minutes.

        Raises:
            GymqError: it cannot be loaded, with vLLM's own words.
        """
        os.environ.update(self._options.environment(), **{HOSTED: "1"})
        arguments: JsonObject = {
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            # On a CPU, compiling takes longer than most runs.
            **({"enforce_eager": True} if self._options.gpus == () else {}),
            **self._options.engine,
            "model": self._options.model,
        }
        began = time.monotonic()
        try:
            from vllm import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            # It logs a traceback for each malformed tool call; `EngineLoad` counts them. Importing vLLM resets levels.
            logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
            self.on_cpu = current_platform.is_cpu()
            if self.on_cpu:
                arguments.setdefault("worker_extension_cls", EXTENSION)
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[self.load.logger()])
            self._spare_statistics()
        except Exception as error:
            raise GymqError(f"vLLM cannot load {self._options.model}: {_why(error)}") from error
        config = self._llm.vllm_config
        self.longest = config.model_config.max_model_len
        self.load.begin(config.scheduler_config.max_num_seqs)
        log.info("vLLM has loaded %s in %.0f s", self._options.model, time.monotonic() - began)

    def _spare_statistics(self) -> None:
        """Turn vLLM's statistics of requests off: they cost a quarter of this process's time; the scheduler's come anyway.

        The task that reads the engine's answers took the setting as it was made, and has not run yet: the first call makes
        another.
        """
        llm = self._llm
        if llm.output_handler is not None:
            llm.output_handler.cancel()
            llm.output_handler = None
        llm.log_stats = llm.output_processor.log_stats = False

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._llm.get_tokenizer()

    @property
    def renderer(self) -> Any:
        """vLLM's renderer, which makes the engine's input of prompts."""
        return self._llm.renderer

    @property
    def model_config(self) -> Any:
        """vLLM's description of the model."""
        return self._llm.vllm_config.model_config

    def ends(self) -> Ends:
        """Return the ids with which the model ends its turn, from its generation config."""
        ends: Ends = self.model_config.try_get_generation_config().get("eos_token_id")
        return ends

    async def generate(self, ids: list[int], params: Any, make_input: Callable[[], Awaitable[Any]] | None = None) -> Sampled:
        """Sample an answer; a cancellation aborts it in the engine.

        Args:
            ids: the prompt's token ids.
            params: vLLM's `SamplingParams`, with `FINAL_ONLY` output and flat logprobs.
            make_input: returns the engine's input of a prompt with images, anew for each try.

        Raises:
            CallError: `model`: the engine does not take the request; `model_unavailable`: it has died.
        """
        lost = False
        while True:
            prompt = {"type": "token", "prompt_token_ids": ids} if make_input is None else await make_input()
            output = await self._once(prompt, params)
            answer = output.outputs[0]
            if answer.finish_reason in ("stop", "length"):
                break
            if answer.finish_reason == "error" and make_input is not None and not lost:
                lost = True  # the engine had dropped an image that vLLM believed cached; the next input brings it
            elif answer.finish_reason != "abort":
                raise CallError("model_unavailable", f"vLLM ended the answer with {answer.finish_reason!r}")
            # Aborted for new weights: the next try waits in the engine until they are loaded.
        self.load.answered(len(answer.token_ids))
        reason = answer.stop_reason
        spans = answer.weight_versions or ()
        return Sampled(
            list(answer.token_ids),
            _logprobs(answer.logprobs),
            [(span.start, int(span.version)) for span in spans],
            answer.finish_reason,
            reason if isinstance(reason, str) else None,
            answer.text,
            output.num_cached_tokens or 0,
        )

    async def _once(self, prompt: Any, params: Any) -> Any:
        if self.broken:
            raise CallError("model_unavailable", self.broken)
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        self._count += 1
        self.load.sent += 1
        try:
            last = None
            async for output in self._llm.generate(prompt, params, f"gymq-{self._count}"):
                last = output
            return last
        except EngineDeadError:
            self.broken = "vLLM's engine died; its log says why"
            raise CallError("model_unavailable", self.broken) from None
        except (VLLMClientError, ValueError) as error:
            raise CallError("model", f"vLLM: {one_line(str(error))}") from None
        finally:
            self.load.sent -= 1

    async def update_weights(self, path: str, version: int, mode: str) -> None:
        """Load new weights of the same model, from a folder with safetensors.

        The cache is emptied: of calls that `keep` has frozen the tokens so far stay, and their prefix is computed anew, so that
        every later token has exactly the log probability that its version gives it.

        Args:
            path: the folder.
            version: their policy version, stamped on all later tokens.
            mode: `keep`, `wait` or `abort`.

        Raises:
            GymqError: there is no such folder, which changes nothing; or the weights could not be loaded, which ends the
                engine, since it now holds neither the old ones nor the new.
        """
        if mode not in MODES:
            raise GymqError(f"weights: mode is {mode!r}; it is one of {', '.join(MODES)}")
        if not await asyncio.to_thread(_has_weights, path):
            raise GymqError(f"weights: {path} holds no .safetensors that this process can read")
        async with self._updating:
            try:
                await self._llm.pause_generation(mode=mode, clear_cache=True)
                await self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
                if self.on_cpu:
                    await self._llm.collective_rpc("gymq_pack_head")
                await self._llm.update_weight_version(str(version))
                await self._llm.resume_generation()
            except Exception as error:
                self.broken = f"weights of version {version} could not be loaded from {path}: {_why(error)}"
                raise GymqError(self.broken) from error

    async def label(self, version: int) -> None:
        """Set the policy version that the engine stamps on its tokens."""
        await self._llm.update_weight_version(str(version))

    def check(self) -> str:
        """Return why it can answer no more, in one line; "": it can."""
        if not self.broken and self._llm is not None and self._llm.errored:
            self.broken = "vLLM's engine died; its log says why"
        return self.broken

    def stop(self) -> None:
        """End its processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown(timeout=STOP_LIMIT)


def _has_weights(path: str) -> bool:
    return any(Path(path).glob("*.safetensors"))


def _logprobs(flat: Any) -> list[float]:
    """Return the sampled ids' log probabilities: the first of each position."""
    if flat is None:
        return []
    return [flat.logprobs[start] for start in flat.start_indices]


def _why(error: BaseException) -> str:
    """Return an error of vLLM's in one line; pydantic's have the reason in the second line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line.removeprefix("Value error, ") for line in lines if line.startswith("Value error, ")), None)
    return one_line(reason.partition(" [type=")[0] if reason else f"{type(error).__name__}: {error}")
