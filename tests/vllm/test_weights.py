"""Weights that change under a real engine with calls in flight."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from gymq_workers.model.vllm.backend import VllmBackend

from gymq.errors import GymqError
from gymq.wire.calls import Generated
from tests.support.tiers import heavy
from tests.vllm.asking import Scorer, floats, ints, request, version_at

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Conversations in flight.
MANY = 64

#: Tokens of each answer: a few hundred steps, so that an update comes in the middle.
LONG = 400


async def in_flight(backend: Any) -> list[asyncio.Task[Generated]]:
    """Calls that have all sampled something."""
    asked = [
        request(f"Conversation {i}: tell me a story of {i} workers.", ignore_eos=True, max_tokens=LONG) for i in range(MANY)
    ]
    tasks = [asyncio.create_task(backend.generate(one)) for one in asked]
    async with asyncio.timeout(60):
        while backend.load()["running"] < MANY:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)
    assert not any(task.done() for task in tasks)
    return tasks


def worst(answers: list[Generated], scorers: dict[int, Scorer]) -> float:
    """The largest difference between the logprobs of answers and those that each token's own version gives it."""
    found = 0.0
    for answer in answers:
        tokens = answer.tokens
        assert tokens is not None
        prompt, output = ints(tokens.prompt), ints(tokens.output)
        scored = {version: scorers[version].score(prompt, output) for _, version in tokens.versions}
        for i, logprob in enumerate(floats(tokens.logprobs)):
            found = max(found, abs(logprob - scored[version_at(tokens, i)][i]))
    return found


@pytest.mark.parametrize("mode", ["keep", *heavy("wait"), "abort"])
async def test_no_call_is_lost_and_each_token_says_which_weights_sampled_it(
    backend: VllmBackend, tiny: Path, tiny2: Path, mode: str
) -> None:
    old, new = backend.version, backend.version + 1
    folders = (tiny, tiny2) if old % 2 == 0 else (tiny2, tiny)
    scorers = {old: Scorer(folders[0]), new: Scorer(folders[1])}
    tasks = await in_flight(backend)
    began = time.monotonic()
    await backend.update_weights(str(folders[1]), new, mode)
    took = time.monotonic() - began
    answers = await asyncio.gather(*tasks)
    after = await backend.generate(request("And now?", ignore_eos=True, max_tokens=20))
    runs = [answer.tokens.versions for answer in answers if answer.tokens is not None]
    difference = worst([*answers[::8], after], scorers)
    print(f"{mode}: {took:.2f} s, largest difference {difference:.2e}, {runs[0]}")
    assert len(answers) == MANY
    assert all(answer.usage.output_tokens == LONG for answer in answers)
    assert after.tokens is not None
    assert after.tokens.versions == [(0, new)]
    if mode == "keep":
        assert all([version for _, version in run] == [old, new] and 0 < run[1][0] < LONG for run in runs)
        assert took < 2
    else:
        assert all(run == [(0, old if mode == "wait" else new)] for run in runs)
    assert difference <= 1e-3


async def test_a_folder_without_weights_changes_nothing(backend: VllmBackend, tmp_path: Path) -> None:
    version = backend.version
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(GymqError, match=r"holds no \.safetensors"):
            await backend.update_weights(str(path), version + 1, "keep")
    assert backend.health() == ""
    answer = await backend.generate(request("Still here?", max_tokens=5))
    assert answer.tokens is not None
    assert answer.tokens.versions == [(0, version)]


async def test_weights_that_cannot_be_loaded_end_the_engine(backend: VllmBackend, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(GymqError, match="could not be loaded"):
        await backend.update_weights(str(tmp_path), 9, "keep")
    assert "could not be loaded" in backend.health()
