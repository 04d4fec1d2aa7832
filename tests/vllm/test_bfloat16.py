"""Logprobs in bfloat16."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.vllm.asking import floats, ints, request

pytestmark = [pytest.mark.heavy, pytest.mark.asyncio(loop_scope="module")]

ENGINE = {"dtype": "bfloat16"}


async def test_the_engine_scores_its_own_answers_within_what_the_format_can_tell(backend: Any) -> None:
    from vllm import SamplingParams

    asked = [request(f"Question {i}: which keys are there?", max_tokens=64, ignore_eos=True) for i in range(32)]
    differences: list[float] = []
    for answer in await asyncio.gather(*(backend.generate(one) for one in asked)):
        prompt, output = ints(answer.tokens.prompt), ints(answer.tokens.output)
        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        async for scored in backend._engine._llm.generate({"prompt_token_ids": prompt + output}, params, "score"):
            found = [scored.prompt_logprobs[len(prompt) + i][one].logprob for i, one in enumerate(output)]
        differences += [abs(a - b) for a, b in zip(found, floats(answer.tokens.logprobs), strict=True)]
    print(f"mean {sum(differences) / len(differences):.4f}, largest {max(differences):.4f}")
    assert sum(differences) / len(differences) <= 0.02
