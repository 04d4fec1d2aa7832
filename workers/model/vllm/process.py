"""Code that runs in vLLM's own processes: their end with the worker, and a step that vLLM's reload of weights omits."""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

from gymq.process.lifetime import die_with

#: The environment variable that marks vLLM's processes as a worker's.
HOSTED = "GYMQ_HOSTED_ENGINE"


def die_with_parent() -> None:
    """Make an engine's process end with the worker that started it, as a plugin of vLLM's.

    Otherwise vLLM's processes outlive a killed parent, and keep the device's memory.
    """
    parent = multiprocessing.parent_process()
    if HOSTED not in os.environ or sys.platform != "linux" or parent is None or parent.pid is None:
        return
    die_with(parent.pid)


class Extension:
    """Methods added to vLLM's workers, for `collective_rpc`."""

    model_runner: Any

    def gymq_pack_head(self) -> None:
        """Pack the head's weights again.

        On CPUs vLLM (0.32) multiplies by packed copies of weights. A reload omits a head that is tied to the embedding, which
        loads no weights of its own and would keep the old ones.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
