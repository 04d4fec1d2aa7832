"""`python -m bench.weights`: how long an engine says nothing when its weights change under conversations, and what is lost.

One engine, whose steps are written down as they come. An update under way is compared with vLLM's reload in the idle engine.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import engines
from bench.engines import Engines, Told, generated
from bench.report import Sheet
from bench.words import text
from gymq import publish_weights
from gymq.store.model_weights import MODES
from gymq.wire.token_branches import branches

#: Seconds in which all replicas must have taken new weights.
LIMIT = 600.0

#: Seconds of steady generation before an update, which are what it is compared with.
STEADY = 1.0

#: Seconds after an update in which generation must be what it was.
AFTER = 2.0


class Steps:
    """What the engine has written down.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, since: float) -> tuple[list[tuple[float, int]], list[tuple[float, float, str]]]:
        """The steps, with their tokens, and vLLM's calls, from a time on."""
        lines = [json.loads(line) for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        recent = [tuple(line) for line in lines if line[0] >= since]
        return [one for one in recent if len(one) == 2], [one for one in recent if len(one) == 3]

    def reload(self, since: float) -> float:
        """Seconds that vLLM took to reload since a time: itself, without what stands around it."""
        (took,) = [ended - began for began, ended, what in self.read(since)[1] if what == "reload_weights"]
        return took


def longest(times: list[float]) -> float:
    """The longest time between two of some."""
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


class Updates:
    """Publishes weights, one version after the other.

    Args:
        model: the SPEC.
        folders: with weights, taken in turn.
        steps: what the engine writes down.
    """

    def __init__(self, model: str, folders: list[str], steps: Steps) -> None:
        self._model, self._folders, self._steps = model, folders, steps
        self.version = 0

    def publish(self, mode: Any = "keep") -> dict[str, float]:
        """Publish the next version, and wait until the engine has it.

        Returns:
            `load`: of vLLM's reload, seconds; `update`: until generation may go on; `began`.
        """
        self.version += 1
        began = time.time()
        publish_weights(self._model, self.version, self._folders[self.version % 2], mode=mode, wait=LIMIT)
        ended = max(ended for _, ended, what in self._steps.read(began)[1] if what == "resume_generation")
        return {"load": self._steps.reload(began), "update": ended - began, "began": began, "ended": ended}

    def under_way(self, mode: str, many: int, tokens: int, found: dict[str, float]) -> None:
        """Publish in the middle of some conversations.

        Args:
            mode: what becomes of calls in flight.
            many: conversations.
            tokens: that they will all have sampled by then.
            found: gets the numbers.
        """
        began = time.time()
        while sum(one[1] for one in self._steps.read(began)[0]) < tokens:
            if time.time() > began + LIMIT:
                raise RuntimeError("the conversations have not come to their middle")
            time.sleep(0.05)
        found |= self.publish(mode)
        time.sleep(AFTER)
        before = self._steps.read(max(began, found["began"] - STEADY))[0]
        found["undisturbed"] = longest([when for when, _ in before if when < found["began"]])
        over = [(when, tokens) for when, tokens in before if when < found["ended"] + AFTER]
        found["gap"] = longest([when for when, _ in over])
        found["half"] = longest([when for when, tokens in over if tokens > many / 2])


def converse(engine: Engines, updates: Updates, mode: str, first: int, args: Any) -> dict[str, float]:
    """Let conversations run, change the weights under them, and see that nothing of them is lost.

    Args:
        engine: the engine.
        updates: what publishes.
        mode: what becomes of calls in flight.
        first: number of the first conversation.
        args: the command line.
    """
    rows = [
        {"prompt": text(index, args.words), "index": index, "turns": args.turns, "words": args.words}
        for index in range(first, first + args.conversations)
    ]
    found: dict[str, float] = {}
    records = engine.roll(
        rows,
        during=lambda: updates.under_way(mode, args.conversations, args.conversations * args.turns * args.tokens // 2, found),
        environment="bench_talk",
        agent="bench_talker",
        concurrency=args.conversations,
        sampling={"max_tokens": args.tokens, "ignore_eos": True, "temperature": 1.0},
    )
    both = 0
    for one in records:
        calls = generated(one)
        sampled = [version for branch in branches(one) for version in branch.versions if version >= 0]
        if [call["output_tokens"] for call in calls] != [args.tokens] * args.turns or any(call.get("fault") for call in calls):
            sys.exit(f"bench: {one['rollout_id']} has lost an answer, or asked for one twice")
        if sampled != sorted(sampled) or len(sampled) != args.tokens * args.turns:
            sys.exit(f"bench: {one['rollout_id']} has tokens of older weights behind those of newer ones")
        both += len(set(sampled)) == 2
    found["both"] = both
    found["waited"] = max(
        call["started"] - call["queued"] + call.get("waited", 0.0) for one in records for call in generated(one)
    )
    if not both:
        sys.exit("bench: the weights did not change while the conversations ran; give them more --turns or --tokens")
    return found


def sheet(args: Any, idle: list[dict[str, float]], modes: dict[str, list[dict[str, float]]]) -> Sheet:
    """The table."""
    load = statistics.median(one["load"] for one in idle)
    for runs in modes.values():
        for run in runs:
            run["stall"] = run["gap"] - load
    told = (
        ("vLLM's reload", "load", "{:.2f}"),
        ("from the word to the end of the update", "update", "{:.2f}"),
        ("longest time without a token before it", "undisturbed", "{:.2f}"),
        ("longest time without a token, over it", "gap", "{:.2f}"),
        ("the same, less the idle engine's reload", "stall", "{:.2f}"),
        ("longest time without a token of half of them", "half", "{:.2f}"),
        ("longest that a call stood still or waited", "waited", "{:.2f}"),
        ("conversations with tokens of both versions", "both", "{:.0f}"),
    )
    rows = []
    for label, key, form in told:
        row = [label]
        for runs in ({"idle": idle} | modes).values():
            values = sorted(run[key] for run in runs if key in run)
            shown = [form.format(value) for value in (statistics.median(values), values[0], values[-1])] if values else []
            row.append(f"{shown[0]} ({shown[1]} to {shown[2]})" if shown else "")
        rows.append(row)
    many = args.conversations * args.repeats
    rows.append(["conversations lost", "", *(f"0 of {many}" for _ in modes)])
    what = f"{args.conversations} conversations, {args.turns} turns of {args.tokens} tokens"
    return f"{what}; s, median of {args.repeats} (lowest to highest)", ["", "idle engine", *modes], rows


def main() -> None:
    """Read the command line and measure."""
    parser = engines.parser("bench.weights", __doc__)
    parser.add_argument("--weights", default="", help="a folder with other weights of the model; default: its own")
    parser.add_argument("--conversations", type=int, default=64, help="in flight")
    parser.add_argument("--turns", type=int, default=4, help="model calls of each")
    parser.add_argument("--words", type=int, default=60, help="of each prompt, and of what the environment says")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--repeats", type=int, default=5, help="updates of each mode")
    parser.add_argument("--readme", action="store_true", help="put the table into bench/README.md")
    args = parser.parse_args()
    told = Told("bench.weights", "### Weights, measured")
    tiny = not args.model
    with engines.ready(args) as folder:
        if tiny:
            from tests.vllm.tiny import make

            args.weights = str(make(folder / "other", seed=1))
        steps = Steps(folder / "steps")
        with Engines(folder, args, [args.gpu], "bench_vllm", steps=folder / "steps") as engine:
            updates = Updates(engine.model, [args.model, args.weights or args.model], steps)
            updates.publish()  # a warm-up
            idle: list[dict[str, float]] = []
            modes: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
            first = 0
            for repeat in range(args.repeats):
                idle.append(updates.publish())
                for mode, runs in modes.items():
                    runs.append(converse(engine, updates, mode, first, args))
                    first += args.conversations
                    said = f"{runs[-1]['gap']:.2f} s without a token, reload {runs[-1]['load']:.2f} s"
                    told.console.print(f"[dim]{mode} {repeat + 1}/{args.repeats}: {said}")
        told.tell([sheet(args, idle, modes)], args.readme)


if __name__ == "__main__":
    main()
