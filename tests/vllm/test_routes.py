"""Conversations that stay with their replica, of real engines: what they keep when it is killed, and when it drains."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gymq.settings import Settings
from gymq.store.runs import RunConfig
from gymq.wire.token_branches import branches
from tests.support.farm import Farm
from tests.support.waiting import wait_until
from tests.vllm.asking import Scorer, ints

#: Seconds that three engines may take to load on a busy machine, and a run to end.
LIMIT = 300

#: Games of each run, and samples of each.
GAMES, SAMPLES = 40, 4

#: A random model never ends by itself, but it soon writes this; a grammar would change the logprobs.
SAMPLING = {"stop": ["e"], "temperature": 1.0}

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(4 * LIMIT)]


class Games:
    """Three replicas, and the runs that they play.

    Args:
        farm: where they live.
        model: their SPEC.
        folder: for results.
    """

    def __init__(self, farm: Farm, model: str, folder: Path) -> None:
        self.farm, self.model, self._folder = farm, model, folder
        data = Path(__file__).parents[2] / "environments" / "guess_number" / "data" / "train.jsonl"
        # A secret that nobody finds: all games are equally long.
        self._rows = [json.loads(line) | {"secret": -1} for line in data.read_text().splitlines()[:GAMES]]
        options = {"model": model, "gpu": "none", "engine": '{"dtype": "float32", "block_size": 32}'}
        self.replicas = [farm.start("model", **options) for _ in range(3)]
        farm.start("agent")
        farm.start("resource", environments="guess_number")
        wait_until(lambda: len(farm.registered()) == 5, LIMIT, "three engines")

    def play(self, name: str, during: Callable[[], Any] = lambda: None) -> list[dict[str, Any]]:
        """Play a run to its end; `during` is called when a few rollouts have ended. All must end well, and once."""
        config = RunConfig(
            name, "guess_number", "tool", self.model, samples=SAMPLES, concurrency=48, max_turns=6, sampling=SAMPLING
        )
        self.farm.produce(config, self._rows)
        out = self._folder / f"{name}.jsonl"
        self.farm.sink(name, out)
        wait_until(lambda: self.farm.status(name).ended >= 8, LIMIT, "a few rollouts")
        during()
        assert self.farm.status(name).ended < GAMES * SAMPLES, "they were too quick for this test"
        wait_until(lambda: self.farm.status(name).state == "done", LIMIT, f"the end of {name}")
        found = [json.loads(line) for line in out.read_text().splitlines()]
        assert len({one["rollout_id"] for one in found}) == len(found) == GAMES * SAMPLES
        assert {one["status"] for one in found} <= {"completed", "truncated"}
        return found


def answered(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A rollout's calls to the model that were answered, in their order."""
    calls = [call for call in record["calls"] if call["kind"] == "generate" and not call.get("fault")]
    return sorted(calls, key=lambda call: int(call["call"].partition(".")[0]))


def moves(record: dict[str, Any]) -> int:
    """How often a conversation went to another replica."""
    return sum(a["worker"] != b["worker"] for a, b in pairwise(answered(record)))


def the_log_is_whole(record: dict[str, Any]) -> None:
    """Each prompt goes on where the last answer ended, so that there is one branch, and each sampled token is in it once."""
    known, sampled = 0, []
    for call in answered(record):
        prompt, output = (ints(base64.b64decode(call["tokens"][name])) for name in ("prompt", "output"))
        assert call["tokens"]["prompt_start"] == known
        assert call["input_tokens"] == known + len(prompt)
        known += len(prompt) + len(output)
        sampled += output
    (branch,) = branches(record)
    assert len(branch.token_ids) == known
    assert [one for one, mine in zip(branch.token_ids, branch.loss_mask, strict=True) if mine] == sampled


def off(record: dict[str, Any], scorer: Scorer) -> float:
    """The largest difference between recorded logprobs and what another implementation gives for exactly these ids."""
    (branch,) = branches(record)
    scored = scorer.score(branch.token_ids[:1].tolist(), branch.token_ids[1:].tolist())
    pairs = zip(branch.logprobs[1:], scored, branch.loss_mask[1:], strict=True)
    return max(abs(recorded - score) for recorded, score, mine in pairs if mine)


def test_conversations_that_move_because_their_replica_was_killed_or_drains_keep_their_tokens(
    spawn: Any, redis_url: str, tiny: Path, tmp_path: Path
) -> None:
    scorer = Scorer(tiny)
    games = Games(Farm(spawn, Settings(redis_url=redis_url, liveness=3.0), tmp_path), f"vllm:{tiny}", tmp_path)
    farm, (killed, drained, _) = games.farm, games.replicas
    # As long as all replicas live, conversations stay.
    calm = games.play("calm")
    steps = sum(len(answered(one)) - 1 for one in calm)
    assert sum(map(moves, calm)) <= steps / 10
    assert len({call["worker"] for one in calm for call in answered(one)}) == 3
    assert sum(call.get("cached_tokens", 0) for one in calm for call in answered(one)) > 0
    # One is killed with calls in hand.
    held = []
    mourning = games.play("killed", lambda: held.append(farm.kill_holding(killed)))
    assert 1 <= sum(call.get("attempt", 0) for one in mourning for call in one["calls"]) <= held[0]
    # Another one is asked to end.
    leaving = games.play("drained", lambda: drained.send_signal(signal.SIGTERM))
    assert drained.wait(60) == 0
    assert sum(call.get("attempt", 0) for one in leaving for call in one["calls"]) == 0
    for found in (mourning, leaving):
        moved = [one for one in found if moves(one)]
        assert moved
        assert max(off(one, scorer) for one in moved[:8]) <= 1e-3
    for one in (*calm, *mourning, *leaving):
        the_log_is_whole(one)
    assert max(off(one, scorer) for one in calm[::20]) <= 1e-3
    print({name: sum(map(moves, found)) for name, found in (("calm", calm), ("killed", mourning), ("drained", leaving))}, steps)
