"""What runs in vLLM's own processes: the end with the worker that started them, and what a reload of weights leaves out."""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

from gymq.process.lifetime import die_with

#: The variable that tells vLLM's processes that they are a worker's.
HOSTED = "GYMQ_HOSTED_ENGINE"


def die_with_parent() -> None:
    """A plugin of vLLM's: an engine's process ends with the worker that started it, however that ended.

    vLLM's processes outlive a parent that was killed, and keep the device's memory.
    """
    parent = multiprocessing.parent_process()
    if HOSTED not in os.environ or sys.platform != "linux" or parent is None or parent.pid is None:
        return
    die_with(parent.pid)


class Extension:
    """Further calls of vLLM's workers, for `collective_rpc`."""

    model_runner: Any

    def gymq_pack_head(self) -> None:
        """Pack the head's weights again.

        On CPUs vLLM (0.32) multiplies by packed copies of weights. A reload leaves out a head that is tied to the embedding,
        for it loads no weights of its own: it would go on with the old ones.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
