"""The backend `vllm`: an engine that this process hosts, asked and answering in token ids."""

from __future__ import annotations

import logging
from functools import partial

from gymq.api.backend import Backend, Request
from gymq.wire.calls import Generated, Usage
from gymq.wire.json_types import JsonObject
from gymq.wire.message import encode_message

from ..tokens.chat_template import ChatTemplate
from ..tokens.token_log import TokenLog
from ..tool_calls import finish_reason
from .engine import Engine
from .images import Images
from .options import VllmOptions
from .parsers import Parsers
from .sampling import Bodies

log = logging.getLogger(__name__)

#: Bytes of token ids and prompts' texts that are kept: those of a few thousand conversations.
MAX_BYTES = 256 << 20


class VllmBackend(Backend):
    """Answers of a vLLM engine that this process hosts.

    Args:
        model: a name on the Hub, or a folder.
        options: `gpu` (`0`, `0,1`, `none`), `engine` (vLLM's engine arguments), `tool_parser`, `reasoning_parser`.

    Raises:
        UsageError: an option makes no sense, or vLLM is not installed.
    """

    name = "vllm"
    secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    affine = True
    versioned = True
    quarantinable = False

    def __init__(self, model: str, options: JsonObject) -> None:
        super().__init__(model, options)
        self._options = VllmOptions.read(model, options)
        self._engine = Engine(self._options)
        self._label = f"vllm:{model}"

    async def start(self) -> None:
        """Load the model.

        Raises:
            GymqError: it cannot be loaded.
        """
        self._engine.start()
        await self._engine.label(self.version)
        self._parsers = Parsers(self._options, self._engine.tokenizer, self._engine.model_config, self._engine.load)
        self._bodies = Bodies(self._parsers.adjust, self._engine.on_cpu)
        self._images = Images(self._engine.renderer, self._engine.model_config)
        tokenizer = self._engine.tokenizer
        template = None if getattr(tokenizer, "chat_template", None) else self._images.template
        variables = {} if template is None else {"chat_template": template}
        self._log = TokenLog(ChatTemplate(tokenizer, variables, self._engine.ends()), MAX_BYTES)
        tool, reasoning = self._parsers.names
        log.info("model vllm:%s: tool parser %s, reasoning parser %s", self.model, tool, reasoning)

    async def stop(self) -> None:
        """End the engine."""
        self._engine.stop()

    async def update_weights(self, path: str, version: int, mode: str) -> None:
        """Load new weights; see `Engine.update_weights`.

        Args:
            path: the weights, an existing path.
            version: their policy version.
            mode: `keep`, `wait` or `abort`.
        """
        await self._engine.update_weights(path, version, mode)
        self.version = version

    def capacity(self) -> int | None:
        """Return how many calls fit the engine now."""
        return self._engine.load.room

    def health(self) -> str:
        """Return why the engine can answer no more; "": it can."""
        return self._engine.check()

    def load(self) -> dict[str, float]:
        """Return the engine's load; see `EngineLoad.numbers`."""
        return self._engine.load.numbers()

    async def generate(self, request: Request) -> Generated:
        """Sample the next message.

        Raises:
            CallError: `model`, `model_unavailable` or `context_overflow`.
        """
        body = self._bodies.read(request.body)
        pictures = await self._images.read(request.messages)
        prompt = await self._log.prompt(request, pictures)
        ids = prompt.ids.tolist()
        params = body.params_for(len(ids), self._engine.longest)
        make_input = None if pictures is None else partial(pictures.input, ids, prompt.places)
        sampled = await self._engine.generate(ids, params, make_input)
        message = self._parsers.message(ids, sampled, body)
        encoded = encode_message(message)
        self._log.answered(request, prompt, sampled.ids, encoded)
        return Generated(
            encoded,
            finish_reason(sampled.finish, bool(message.tool_calls)),
            Usage(len(ids), len(sampled.ids), sampled.cached, sampled.reasoning),
            prompt.tokens(sampled.ids, sampled.logprobs, sampled.versions),
            self._label,
        )
