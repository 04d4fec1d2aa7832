"""The backend `vllm`: the engine in this process; tokens go in, and tokens come out."""

from __future__ import annotations

import sys
from array import array
from typing import Any

from gymq.backend import Backend, Request
from gymq.call import Generated, Tokens, Usage
from gymq.errors import CallError, one_line
from gymq.message import encode_message

from .chat_api import ended
from .vllm_engine import Engine
from .vllm_options import VllmOptions
from .vllm_parsers import Parsers
from .vllm_sampling import Bodies


class VllmBackend(Backend):
    """Answers of a vLLM engine that this process hosts.

    Args:
        model: a name on the Hub, or a folder.
        options: `gpu` (`0`, `0,1`, `none`), `engine` (vLLM's engine arguments), `tool_parser`, `reasoning_parser`.

    Raises:
        UsageError: an option makes no sense, or vLLM is not installed.
    """

    name = "vllm"
    affine = True
    versioned = True
    alone = False

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        super().__init__(model, options)
        self._options = VllmOptions.read(model, options)
        self._engine = Engine(self._options)

    async def start(self) -> None:
        """Load the model.

        Raises:
            GymqError: it cannot be loaded.
        """
        self._engine.start()
        await self._engine.label()
        self._parsers = Parsers(self._options, self._engine.tokenizer, self._engine.model_config, self._engine.load)
        self._bodies = Bodies(self._parsers.adjust, self._engine.on_cpu)
        tool, reasoning = self._parsers.names
        print(f"gymq: model vllm:{self.model}: tool parser {tool}, reasoning parser {reasoning}", file=sys.stderr)

    async def stop(self) -> None:
        """End the engine."""
        self._engine.stop()

    @property
    def version(self) -> int:  # type: ignore[override]
        """The version of the weights that it samples with."""
        return self._engine.version

    async def update_weights(self, path: str, version: int, mode: str) -> None:
        """Take new weights; see `Engine.update_weights`."""
        await self._engine.update_weights(path, version, mode)

    def capacity(self) -> int | None:
        """How many calls fit the engine now."""
        return self._engine.load.room

    def health(self) -> str:
        """Why the engine can answer nothing any more."""
        return self._engine.check()

    def load(self) -> dict[str, float]:
        """What the engine is at."""
        return self._engine.load.numbers()

    async def generate(self, request: Request) -> Generated:
        """Sample the next message.

        Raises:
            CallError: `model`, `model_unavailable` or `context_overflow`.
        """
        body = self._bodies.read(request.body)
        prompt = self._render(request, body)
        sampled = await self._engine.generate(prompt, body.params_for(len(prompt), self._engine.longest))
        message = self._parsers.message(prompt, sampled, body)
        usage = Usage(len(prompt), len(sampled.ids), sampled.cached, 0)
        tokens = Tokens(
            0,
            array("i", prompt).tobytes(),
            array("i", sampled.ids).tobytes(),
            array("f", sampled.logprobs).tobytes(),
            sampled.versions,
        )
        finish = ended(sampled.finish, bool(message.tool_calls))
        return Generated(encode_message(message), finish, usage, tokens, f"vllm:{self.model}")

    def _render(self, request: Request, body: Any) -> list[int]:
        import msgspec

        messages = [msgspec.json.decode(turn) for turn in request.messages.turns]
        for one in messages:
            for call in one.get("tool_calls") or ():
                call["function"]["arguments"] = msgspec.json.decode(call["function"]["arguments"])
        try:
            found = self._engine.tokenizer.apply_chat_template(
                messages,
                tools=body.tools or None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **body.template,
            )
        except Exception as error:
            raise CallError("model", f"the chat template: {one_line(str(error))}") from None
        return list(found)
