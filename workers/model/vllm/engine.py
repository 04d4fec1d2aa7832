"""One vLLM engine in this process: tokens in, tokens out, weights that change, and what it is at.

vLLM keeps the model in a process of its own (one per device when there are several); what is here is its client. vLLM is
imported when the engine starts, after the environment says which devices it may see.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from gymq.errors import CallError, GymqError, one_line

from ..tokens.chat_template import Ends
from .load import EngineLoad
from .options import VllmOptions
from .process import HOSTED

#: How to treat calls in flight while weights change: freeze them, let them end, or begin them anew.
MODES = ("keep", "wait", "abort")

#: Seconds that the engine's processes may take to end; then they are killed, and nothing is lost by it.
STOP_LIMIT = 5.0

#: What is added to vLLM's workers on a CPU.
EXTENSION = "gymq_workers.model.vllm.process.Extension"


class Sampled(msgspec.Struct):
    """What the engine answered.

    Args:
        ids: the sampled token ids, the one that ended it included.
        logprobs: one per id, of the model's own distribution (before temperature, top_p and the like), with a grammar among
            the tokens that it allows.
        versions: runs `(index of the first id, policy version)`, ascending.
        finish: `stop` or `length`.
        ended_by: of `stop`: the stop string that ended it, else None: a token did.
        text: the text without what ended it, when it was asked for; else "".
        cached: how many of the prompt's tokens were found in the prefix cache.
        reasoning: how many of the ids are reasoning, as far as the parser counts them.
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
        options: what it is started with.
    """

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._llm: Any = None
        self._updating = asyncio.Lock()
        self._count = 0
        self.load = EngineLoad()
        #: Whether it runs on a CPU.
        self.on_cpu = False
        #: Tokens that a prompt and its answer may have together.
        self.longest = 0
        #: Why it can answer nothing any more; "": it can.
        self.broken = ""

    def start(self) -> None:
        """Load the model; takes from seconds to minutes.

        Raises:
            GymqError: it cannot be loaded, with vLLM's own words.
        """
        os.environ.update(self._options.environment(), **{HOSTED: "1"})
        arguments: dict[str, Any] = {
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            # On a CPU, compiling takes longer than most runs that anybody does there.
            **({"enforce_eager": True} if self._options.gpus == () else {}),
            **self._options.engine,
            "model": self._options.model,
        }
        began = time.monotonic()
        try:
            from vllm import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            # A traceback for each call that a model wrote badly; they are counted instead. Importing vLLM resets levels.
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
        print(f"gymq: vLLM has loaded {self._options.model} in {time.monotonic() - began:.0f} s", file=sys.stderr)

    def _spare_statistics(self) -> None:
        """Let vLLM keep no statistics of requests: they cost this process a quarter of its time, and nobody reads them.

        Those of the scheduler come all the same. What reads the engine's answers has looked whether to keep them when it was
        made, a moment ago, and has not begun: the first call makes another.
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
        """What makes the engine's input of prompts."""
        return self._llm.renderer

    @property
    def model_config(self) -> Any:
        """vLLM's description of the model."""
        return self._llm.vllm_config.model_config

    def ends(self) -> Ends:
        """The ids with which the model ends its turn, as its generation config has them."""
        found: Ends = self.model_config.try_get_generation_config().get("eos_token_id")
        return found

    async def generate(self, ids: list[int], params: Any, given: Callable[[], Awaitable[Any]] | None = None) -> Sampled:
        """Sample an answer; a cancellation aborts it in the engine.

        Args:
            ids: the prompt's token ids.
            params: vLLM's `SamplingParams`, with `FINAL_ONLY` output and flat logprobs.
            given: makes the engine's input where the prompt has more than its ids, anew for each try.

        Raises:
            CallError: `model`: the engine does not take the request; `model_unavailable`: it has died.
        """
        lost = False
        while True:
            output = await self._once({"type": "token", "prompt_token_ids": ids} if given is None else await given(), params)
            answer = output.outputs[0]
            if answer.finish_reason in ("stop", "length"):
                break
            if answer.finish_reason == "error" and given is not None and not lost:
                lost = True  # the engine had no longer what vLLM thought it had, and knows it now
            elif answer.finish_reason != "abort":
                raise CallError("model_unavailable", f"vLLM ended the answer with {answer.finish_reason!r}")
            # New weights came, in mode `abort`: it waits in the engine until they are there.
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
        """Take new weights of the same model, from a folder with safetensors.

        All that is in flight when they are there is computed anew with them, also what `keep` has frozen: its tokens so far
        stay, the cache does not, so every later token has exactly the logprob that its version gives it.

        Args:
            path: the folder.
            version: their version; tokens are stamped with it from then on.
            mode: `keep`, `wait` or `abort`.

        Raises:
            GymqError: there is no such folder, which changes nothing; or the weights could not be loaded, which ends the
                engine, since what it holds now is neither the old ones nor the new.
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
        """Tell the engine the version that it begins with."""
        await self._llm.update_weight_version(str(version))

    def check(self) -> str:
        """Why it can answer nothing any more; "": it can."""
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
    """The sampled ids' logprobs: the first of each position."""
    if flat is None:
        return []
    return [flat.logprobs[start] for start in flat.start_indices]


def _why(error: BaseException) -> str:
    """vLLM's errors in one line; pydantic's have the reason in the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line.removeprefix("Value error, ") for line in lines if line.startswith("Value error, ")), None)
    return one_line(told.partition(" [type=")[0] if told else f"{type(error).__name__}: {error}")
