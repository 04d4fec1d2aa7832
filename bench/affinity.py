"""`python -m bench.affinity`: what it brings that a conversation stays with the replica that has its prefix.

Several vLLM replicas roll out conversations of many turns, in groups, with routing and without in turn. Without, the replicas'
private mailboxes are closed, so that all calls go through the shared one: same replicas, same work, nothing started again.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from bench import engines
from bench.engines import Engines, Told, generated
from bench.report import Sheet
from bench.words import text
from gymq.store import scripts
from gymq.store.connection import Connection
from gymq.store.keys import Keys

#: Messages that one script moves out of a private mailbox; nothing lies there between runs.
BATCH = 100

#: Seconds after which agents have seen who has a private mailbox, and engines have said what they have counted.
SEEN = 1.5

#: Blocks of the tiny model's cache, of 32 tokens: room for the share of a replica, and not for all conversations.
BLOCKS = "768"


@contextmanager
def shared(replicas: Engines) -> Iterator[None]:
    """For a while all calls go through the shared mailbox."""
    boxes: Any = replicas.client.hgetall(Keys().private)

    async def each(make: Callable[[str, bytes], scripts.ScriptCall[Any]]) -> None:
        connection = Connection(replicas.settings, "bench")
        await connection.connect()
        for worker, open_for in boxes.items():
            await connection.run(make(worker.decode(), open_for))
        await connection.close()

    asyncio.run(each(lambda worker, _: scripts.close_mailbox(worker, BATCH)))
    time.sleep(SEEN)
    yield
    after: Any = replicas.client.hgetall(Keys().private)
    if set(after) != set(boxes) or any(after.values()):
        raise RuntimeError("a replica has opened its private mailbox meanwhile: the machine is too busy")
    asyncio.run(each(scripts.open_mailbox))
    time.sleep(SEEN)


def measure(replicas: Engines, first: int, args: Any) -> dict[str, float]:
    """Roll out some groups.

    Args:
        replicas: by whom.
        first: number of the first group; its prompts have nothing in common with those of others.
        args: the command line.
    """
    rows = [
        {"prompt": text(index, args.words), "index": index, "turns": args.turns, "words": args.result}
        for index in range(first, first + args.groups)
    ]
    before = counted(replicas)
    found = replicas.roll(
        rows,
        environment="bench_talk",
        agent="bench_talker",
        samples=args.samples,
        concurrency=args.concurrency,
        sampling={"max_tokens": args.tokens, "ignore_eos": True, "temperature": 1.0},
    )
    time.sleep(SEEN)
    looked, hits = (now - then for now, then in zip(counted(replicas), before, strict=True))
    chains = [generated(one) for one in found]
    calls = [call for chain in chains for call in chain]
    if any(call.get("fault") for call in calls) or len(calls) != len(found) * args.turns:
        raise RuntimeError(f"{len(calls)} calls of {len(found)} rollouts, some with faults")
    prompt = sum(call["input_tokens"] for call in calls)
    cached = sum(call.get("cached_tokens", 0) for call in calls)
    stayed = [a["worker"] == b["worker"] for chain in chains for a, b in pairwise(chain)]
    groups: dict[str, set[str]] = defaultdict(set)
    for one, chain in zip(found, chains, strict=True):
        groups[one["group_id"]].add(chain[0]["worker"])
    served = Counter(call["worker"] for call in calls)
    span = max(one["finished_at"] for one in found) - min(one["started_at"] for one in found)
    return {
        "calls": len(calls),
        "prompt": prompt,
        "computed": prompt - cached,
        "hits": cached / prompt,
        "engines": hits / looked,
        "longest": statistics.median(chain[-1]["input_tokens"] + chain[-1]["output_tokens"] for chain in chains),
        "most": most(chains, args.samples) / prompt,
        "stayed": statistics.mean(stayed),
        "together": statistics.mean(len(first) == 1 for first in groups.values()),
        "spread": max(served.values())
        / max(1, min(served[name] for name, info in replicas.workers().items() if info["role"] == "model")),
        "rate": len(calls) / span,
    }


def counted(replicas: Engines) -> tuple[float, float]:
    """The prompt tokens that the engines have looked up in their caches since they started, and found there."""
    loads = replicas.loads()
    return sum(load["prompt_tokens"] for load in loads), sum(load["cached_tokens"] for load in loads)


def most(chains: list[list[dict[str, Any]]], samples: int) -> float:
    """The prompt tokens that one cache would find which forgets nothing: what a turn repeats, and what samples share."""
    repeated = sum(call["tokens"]["prompt_start"] for chain in chains for call in chain)
    opening = sum(chain[0]["input_tokens"] for chain in chains)
    return repeated + opening * (samples - 1) / samples


#: What is told: of which number, how it is written, and whether its range is, too.
ROWS = (
    ("prompt tokens", "prompt", "{:,.0f}", False),
    ("tokens of a conversation at its end", "longest", "{:,.0f}", False),
    ("prefill tokens, computed", "computed", "{:,.0f}", True),
    ("prefix-cache hits, by the calls' usage", "hits", "{:.1%}", True),
    ("prefix-cache hits, by the engines' counters", "engines", "{:.1%}", True),
    ("the most that one endless cache would find", "most", "{:.1%}", False),
    ("calls that stayed with the replica of the call before", "stayed", "{:.1%}", True),
    ("groups that started at one replica", "together", "{:.1%}", True),
    ("calls, busiest replica / least busy", "spread", "{:.2f}", True),
    ("calls/s", "rate", "{:,.1f}", True),
)


def sheet(args: Any, ways: dict[str, list[dict[str, float]]]) -> Sheet:
    """The table."""
    rows = []
    for label, key, form, ranged in ROWS:
        row = [label]
        for runs in ways.values():
            values = sorted(run[key] for run in runs)
            cell = form.format(statistics.median(values))
            spread = f" ({form.format(values[0])} to {form.format(values[-1])})" if ranged and len(values) > 1 else ""
            row.append(cell + spread)
        rows.append(row)
    what = (
        f"{args.replicas} replicas, {args.groups} groups of {args.samples}, {args.turns} turns, {args.concurrency} in flight; "
        f"prompts of {args.words} words, answers of {args.tokens} tokens, results of {args.result} words"
    )
    return f"{what}: median of {args.repeats} (lowest to highest)", ["", *ways], rows


def main() -> None:
    """Read the command line and measure."""
    parser = engines.parser("bench.affinity", __doc__)
    parser.add_argument("--replicas", type=int, default=3, help="engines")
    parser.add_argument("--groups", type=int, default=24, help="of each run")
    parser.add_argument("--samples", type=int, default=4, help="of each group")
    parser.add_argument("--turns", type=int, default=5, help="model calls of each rollout")
    parser.add_argument("--concurrency", type=int, default=48, help="conversations in flight")
    parser.add_argument("--words", type=int, default=200, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--result", type=int, default=80, help="words of what the environment says to an answer")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    parser.add_argument("--readme", action="store_true", help="put the table into bench/README.md")
    args = parser.parse_args()
    told = Told("bench.affinity", "### Routing, measured")
    devices = args.gpu.split(",")
    with engines.ready(args, num_gpu_blocks_override=BLOCKS) as folder:
        gpus = [devices[i % len(devices)] for i in range(args.replicas)]
        with Engines(folder, args, gpus) as replicas:
            ways: dict[str, list[dict[str, float]]] = {"with routing": [], "without": []}
            first = 0
            for repeat in range(args.repeats):
                for way in ways if repeat % 2 else reversed(ways):
                    if way == "without":
                        with shared(replicas):
                            run = measure(replicas, first, args)
                    else:
                        run = measure(replicas, first, args)
                    first += args.groups
                    ways[way].append(run)
                    told.console.print(
                        f"[dim]{way} {repeat + 1}/{args.repeats}: {run['hits']:.1%} hits, {run['rate']:.1f} calls/s"
                    )
        told.tell([sheet(args, ways)], args.readme)


if __name__ == "__main__":
    main()
