"""The real engine, on a CPU, with a random model that is made on the spot, or with a small real one; nothing here is collected
where there is no vLLM."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio

from tests.vllm import smollm2 as real
from tests.vllm.tiny import make
from tests.vllm.vision import make_vision

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

# GiB; and nobody is asked for models.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


#: Seconds: several times what an engine needs to start on a busy machine.
ENGINE_START = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and let an engine take its time to start."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(ENGINE_START))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, float32."""
    return make(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return make(tmp_path_factory.mktemp("models") / "tiny2", seed=1)


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes images, float32."""
    return make_vision(tmp_path_factory.mktemp("models") / "vision")


@pytest.fixture(scope="session")
def vision2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return make_vision(tmp_path_factory.mktemp("models") / "vision2", seed=1)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real model, bfloat16; where it cannot be had the test is skipped."""
    try:
        return real.make()
    except real.NotAtHand as error:
        pytest.skip(str(error))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[object]:
    """The backend with its engine started; a module may say MODEL, a fixture, and ENGINE, the engine's arguments."""
    from gymq_workers.model.vllm.backend import VllmBackend

    # Compiling the model is most of an engine's start; `tests/vllm/test_rollouts.py` runs a compiled one.
    engine = {"dtype": "float32", "max_num_seqs": 128, "enforce_eager": True, **getattr(request.module, "ENGINE", {})}
    model = request.getfixturevalue(getattr(request.module, "MODEL", "tiny"))
    made = VllmBackend(str(model), {"gpu": "none", "engine": engine, "tool_parser": "hermes"})
    await made.start()
    yield made
    await made.stop()
