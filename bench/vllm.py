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
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import redis

from gymq import RunConfig, Settings, consume, worker
from gymq.child import Child
from gymq.embedded import EmbeddedServer
from gymq.keys import Keys
from gymq.link import Link
from gymq.producer import Producer
from gymq.run import create

#: Seconds in which a model must be loaded.
START_LIMIT = 900.0

WORDS = (
    "queue",
    "actor",
    "lease",
    "reward",
    "rollout",
    "mailbox",
    "verifier",
    "group",
    "sample",
    "turn",
    "token",
    "task",
    "worker",
)


def question(index: int, words: int) -> str:
    """A prompt, the same for the same index, and unlike all others from its beginning."""
    return f"{index}: " + " ".join(WORDS[(index * 7 + i * (1 + index % 5)) % len(WORDS)] for i in range(words))


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """What each answer is asked for."""
    return {"max_tokens": args.tokens, "ignore_eos": True, "temperature": 1.0}


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
    from gymq_workers.model.vllm_options import VllmOptions
    from gymq_workers.model.vllm_process import HOSTED

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
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question(index, args.words)}], add_generation_prompt=True, tokenize=False
        )
        began = time.perf_counter()
        ids = tokenizer.encode(text, add_special_tokens=False)
        params = SamplingParams(
            **sampling(args), logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
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


class Through:
    """Server and workers."""

    def __init__(self, args: argparse.Namespace, gpu: str, folder: Path) -> None:
        self.args = args
        self._server = EmbeddedServer(folder / "server")
        self._server.start()
        self.settings = Settings(redis_url=self._server.url)
        os.environ["GYMQ_REDIS_URL"] = self._server.url
        self._runs = 0
        model = {"model": f"vllm:{args.model}", "gpu": gpu, "engine": json.dumps(args.engine)}
        options: dict[str, dict[str, Any]] = {"agent": {}, "resource": {"environments": "multiple_choice"}, "model": model}
        self.children = []
        for role, given in options.items():
            argv, env = worker.command(self.settings, role, given, role)
            self.children.append(Child(argv, env, role, folder / f"{role}.log"))
        client = redis.Redis.from_url(self._server.url)
        until = time.monotonic() + START_LIMIT
        while int(client.hlen(Keys().workers)) < len(options):  # type: ignore[arg-type]
            if time.monotonic() > until or not all(child.alive for child in self.children):
                sys.exit(f"bench: a worker did not start: {[child.tail(5) for child in self.children]}")
            time.sleep(0.2)

    def measure(self, first: int, count: int, concurrency: int) -> dict[str, float]:
        """Roll out some."""
        self._runs += 1
        config = RunConfig(
            name=f"bench{self._runs}",
            environment="multiple_choice",
            agent="tool",
            model=f"vllm:{self.args.model}",
            concurrency=concurrency,
            sampling=sampling(self.args),
        )
        rows = [
            (
                f"bench:{index}",
                {
                    "prompt": question(index, self.args.words),
                    "options": [{"A": "yes"}, {"B": "no"}],
                    "expected_answer": "A",
                    "grading_mode": "strict_single_letter_boxed",
                },
            )
            for index in range(first, first + count)
        ]
        asyncio.run(self._declare(config))
        produced = threading.Thread(target=lambda: asyncio.run(Producer(self.settings, config, "bench").run(rows)))
        produced.start()
        began, ended, took = float("inf"), 0.0, list[float]()
        for rollout in consume(config.name, "bench", settings=self.settings):
            record = rollout.data
            began, ended = min(began, record["started_at"]), max(ended, record["finished_at"])
            (call,) = [call for call in record["calls"] if call["kind"] == "generate"]
            took.append(call["finished"] - call["queued"])
            if record["status"] == "failed" or call["output_tokens"] != self.args.tokens:
                sys.exit(f"bench: a wrong rollout: {record['status']} {record['error']}")
        produced.join()
        if len(took) != count:
            sys.exit(f"bench: {len(took)} rollouts of {count}")
        return {"rate": count / (ended - began), "p50": statistics.median(took)}

    async def _declare(self, config: RunConfig) -> None:
        link = Link(self.settings, "bench")
        await link.connect()
        await create(link, config)
        await link.run("declare", config.name, "bench")
        await link.close()

    def close(self) -> None:
        """End everything."""
        for child in self.children:
            child.terminate(20)
        self._server.stop()


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
    parser = argparse.ArgumentParser(prog="bench.vllm", description=__doc__)
    parser.add_argument("--model", default="", help="a name on the Hub, or a folder; default: a random tiny one")
    parser.add_argument("--gpu", default="none", help="none: a CPU; 0,1: the bare engine's device and gymq's")
    parser.add_argument("--engine", action="append", default=[], metavar="KEY=VALUE", help="an engine argument")
    parser.add_argument("--count", type=int, default=600, help="calls of each measurement")
    parser.add_argument("--concurrency", type=int, default=64, help="calls in flight")
    parser.add_argument("--words", type=int, default=60, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--repeats", type=int, default=5, help="alternations")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.engine = dict(pair.split("=", 1) for pair in args.engine)
    if args.serve:
        return asyncio.run(serve(args))
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            from tests.vllm.tiny import make

            args.model = str(make(Path(folder) / "tiny"))
        compare(args, Path(folder))
    return None


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Let both do the same work in turn, and print what came of it."""
    cores = sorted(os.sched_getaffinity(0))
    cpu = args.gpu == "none"
    if cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else each takes most of the memory
    gpus = ["none", "none"] if cpu else args.gpu.split(",")
    bare = Bare(args, gpus[0])
    through = Through(args, gpus[-1], folder)
    try:
        if cpu and len(cores) > 1:
            pin(cores)
        found: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {"throughput": [], "latency": []}
        first = 0
        for repeat in range(args.repeats + 1):
            for what, count, concurrency in (("throughput", args.count, args.concurrency), ("latency", args.count // 4, 8)):
                # The same prompts, which neither has seen before; who comes first changes.
                one = {}
                for who in ("bare", "through") if repeat % 2 else ("through", "bare"):
                    asked = (first, count, concurrency)
                    one[who] = bare.measure(*asked) if who == "bare" else through.measure(*asked)
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
    finally:
        bare.process.kill()
        through.close()


if __name__ == "__main__":
    main()
