"""A model that is split over two processes, as it is over two devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vllm.asking import Scorer, floats, ints, request

CORES = sorted(os.sched_getaffinity(0))

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")]


async def test_a_model_that_is_split_over_two_processes_samples_and_takes_new_weights(
    tiny: Path, tiny2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gymq_workers.model.vllm.backend import VllmBackend

    # Given an engine of two workers, a core each
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{CORES[0]}|{CORES[1]}")
    backend = VllmBackend(str(tiny), {"gpu": "none", "engine": {"dtype": "float32", "tensor_parallel_size": 2}})
    await backend.start()
    try:
        # When the weights change, and change back
        for version, model in enumerate((tiny, tiny2, tiny)):
            if version:
                await backend.update_weights(str(model), version, "keep")
            answer = await backend.generate(request("What flows where?", max_tokens=16, ignore_eos=True))
            tokens = answer.tokens
            assert tokens is not None
            assert tokens.versions == [(0, version)]
            # Then each answer has the logprobs that the whole model gives it
            scored = Scorer(model).score(ints(tokens.prompt), ints(tokens.output))
            assert max(abs(a - b) for a, b in zip(floats(tokens.logprobs), scored, strict=True)) < 1e-3
    finally:
        await backend.stop()
