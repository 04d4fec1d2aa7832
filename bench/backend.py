"""A backend of the benchmark's own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from gymq_workers.model.vllm.backend import VllmBackend

#: What is timed of vLLM's client: how weights change.
TIMED = ("pause_generation", "collective_rpc", "resume_generation")


class Timed(VllmBackend):
    """The backend `vllm`, which also writes down when its engine's steps gave how many tokens, and when its weights changed.

    Args:
        model, options: as there; and `steps`, the file: a JSON list in each line, `[seconds since the epoch, tokens]` or
            `[began, ended, what]`.
    """

    name = "bench_vllm"

    async def start(self) -> None:
        """Load the model."""
        await super().start()
        self._note(Path(self.options["steps"]).open("a", buffering=1))  # noqa: ASYNC230, SIM115

    def _note(self, file: TextIO) -> None:
        llm = self._engine._llm
        process = llm.output_processor.process_outputs

        def noted(outputs: Any, *args: Any, **named: Any) -> Any:
            tokens = sum(len(output.new_token_ids) for output in outputs)
            if tokens:
                file.write(json.dumps([time.time(), tokens]) + "\n")
            return process(outputs, *args, **named)

        def timed(call: Any) -> Any:
            async def one(*args: Any, **named: Any) -> Any:
                began = time.time()
                found = await call(*args, **named)
                file.write(json.dumps([began, time.time(), args[0] if args else call.__name__]) + "\n")
                return found

            return one

        llm.output_processor.process_outputs = noted
        for name in TIMED:
            setattr(llm, name, timed(getattr(llm, name)))
