"""`python -m bench.vllm`: what the vLLM backend costs beside a bare `AsyncLLM` that does the same token work.

Both engines are loaded, and take turns. On a CPU the engine's processes are pinned to one core, all others to the rest. With
`--gpu 0,1` the bare engine gets the first device and gymq's the second. Without `--model` it makes a random tiny one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil

from bench import engines
from bench.engines import Engines, generated
from bench.words import text


def sampling(index: int, args: argparse.Namespace) -> dict[str, Any]:
    """What an answer is asked for.

    Lengths are spread around `--tokens`. Were all the same, a bare client's calls would all end and begin in the same steps of
    the engine, for ever, which no real work does.
    """
    return {"max_tokens": args.tokens // 2 + index * 31 % (args.tokens + 1), "ignore_eos": True, "temperature": 1.0}


class Bare:
    """The process with `AsyncLLM` and nothing else."""

    def __init__(self, args: argparse.Namespace, gpu: str) -> None:
        argv = [sys.executable, "-m", "bench.vllm", "--serve", "--gpu", gpu, *rest(args)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdout
        while (line := self.process.stdout.readline().strip()) != "ready":  # vLLM prints there, too
            print(line, file=sys.stderr)
            if not line and self.process.poll() is not None:
                sys.exit("bench: the bare engine did not start")

    def measure(self, first: int, count: int, concurrency: int) -> dict[str, float]:
        """Let it do some."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([first, count, concurrency]) + "\n")
        while not (line := self.process.stdout.readline()).startswith("{"):
            if not line:
                sys.exit("bench: the bare engine died")
        return dict(json.loads(line))


async def serve(args: argparse.Namespace) -> None:
    """Be that process: read what to do, print how it went."""
    from gymq_workers.model.vllm.options import VllmOptions
    from gymq_workers.model.vllm.process import HOSTED

    os.environ[HOSTED] = "1"  # its engine ends with it
    options = VllmOptions.read(args.model, {"gpu": args.gpu, "engine": args.engine})
    os.environ.update(options.environment())
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    eager = {"enforce_eager": True} if args.gpu == "none" else {}
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            **{"enable_prefix_caching": True, "disable_log_stats": True, **eager, **options.engine, "model": args.model}
        )
    )
    tokenizer = llm.get_tokenizer()
    asked = 0

    async def one(index: int, took: list[float]) -> None:
        nonlocal asked
        asked += 1
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text(index, args.words)}], add_generation_prompt=True, tokenize=False
        )
        began = time.perf_counter()
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        params = SamplingParams(
            **sampling(index, args), logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        async for _ in llm.generate({"type": "token", "prompt_token_ids": ids}, params, str(asked)):  # type: ignore[arg-type]
            pass
        took.append(time.perf_counter() - began)

    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        first, count, concurrency = json.loads(line)
        todo = iter(range(first, first + count))
        took: list[float] = []

        async def client(todo: Any, took: list[float]) -> None:
            for index in todo:
                await one(index, took)

        began = time.perf_counter()
        await asyncio.gather(*(client(todo, took) for _ in range(concurrency)))
        spent = time.perf_counter() - began
        print(json.dumps({"rate": count / spent, "p50": statistics.median(took)}), flush=True)
    llm.shutdown()


def through(engines: Engines, args: argparse.Namespace, first: int, count: int, concurrency: int) -> dict[str, float]:
    """Let gymq roll out some."""
    rows = [
        {
            "prompt": text(index, args.words),
            "options": [{"A": "yes"}, {"B": "no"}],
            "expected_answer": "A",
            "grading_mode": "strict_single_letter_boxed",
            "sampling": sampling(index, args),
        }
        for index in range(first, first + count)
    ]
    found = engines.roll(rows, ("truncated",), environment="multiple_choice", agent="tool", concurrency=concurrency)
    calls = [call for one in found for call in generated(one)]
    told = sorted(call["output_tokens"] for call in calls)
    if told != sorted(row["sampling"]["max_tokens"] for row in rows):
        sys.exit("bench: an answer is not as long as it was to be")
    span = max(one["finished_at"] for one in found) - min(one["started_at"] for one in found)
    return {"rate": count / span, "p50": statistics.median(call["finished"] - call["queued"] for call in calls)}


def pin(cores: list[int]) -> None:
    """Bind the engines' processes to the last core, and all others to the rest, thread by thread.

    Only now: an engine that may use one core when it starts does not.
    """
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        engine = "VLLM::" in " ".join(process.cmdline())
        for thread in process.threads():
            os.sched_setaffinity(thread.id, {cores[-1]} if engine else set(cores[:-1]))


def rest(args: argparse.Namespace) -> list[str]:
    """The arguments for the bare process."""
    given = ["--model", args.model, "--words", str(args.words), "--tokens", str(args.tokens)]
    return given + [f"--engine={key}={value}" for key, value in args.engine.items()]


def main() -> None:
    """Read the command line and measure."""
    parser = engines.parser("bench.vllm", __doc__)
    parser.add_argument("--count", type=int, default=600, help="calls of each measurement")
    parser.add_argument("--concurrency", type=int, default=64, help="calls in flight")
    parser.add_argument("--words", type=int, default=60, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, on average")
    parser.add_argument("--repeats", type=int, default=5, help="alternations")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        args.engine = dict(pair.split("=", 1) for pair in args.engine)
        return asyncio.run(serve(args))
    with engines.ready(args) as folder:
        cores = sorted(os.sched_getaffinity(0))
        gpus = [args.gpu, args.gpu] if args.gpu == "none" else args.gpu.split(",")
        bare = Bare(args, gpus[0])
        try:
            with Engines(folder, args, gpus[-1:]) as ours:
                if args.gpu == "none" and len(cores) > 1:
                    pin(cores)
                compare(args, bare, ours)
        finally:
            bare.process.kill()
    return None


def compare(args: argparse.Namespace, bare: Bare, ours: Engines) -> None:
    """Let both do the same work in turn, and print what came of it."""
    found: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {"throughput": [], "latency": []}
    first = 0
    for repeat in range(args.repeats + 1):
        for what, count, concurrency in (("throughput", args.count, args.concurrency), ("latency", args.count // 4, 8)):
            # The same prompts, which neither has seen before; who comes first changes.
            one = {}
            for who in ("bare", "through") if repeat % 2 else ("through", "bare"):
                asked = (first, count, concurrency)
                one[who] = bare.measure(*asked) if who == "bare" else through(ours, args, *asked)
            first += count
            if repeat:  # the first is a warm-up
                found[what].append((one["bare"], one["through"]))
    for what, pairs in found.items():
        for field, unit in (("rate", "calls/s"), ("p50", "s")):
            b, t = (statistics.median(pair[i][field] for pair in pairs) for i in (0, 1))
            ratios = sorted(pair[1][field] / pair[0][field] for pair in pairs)
            print(
                f"{what} {field}: bare {b:.4g} {unit}, gymq {t:.4g} {unit}, difference {t - b:+.4g}, "
                f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            )
    print(f"{args.repeats} times {args.count} calls, {args.words} words in, {args.tokens} tokens out")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
