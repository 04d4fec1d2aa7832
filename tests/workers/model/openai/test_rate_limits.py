"""Several processes and a server that limits them, or that counts what reaches it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from gymq.runtime.rate_limit import SharedLimiter
from gymq.store.connection import Connection
from gymq.store.runs import RunConfig
from tests.support.model_server import ask
from tests.support.rollouts import Workers, produce, wait_for_workers, weather
from tests.support.rollouts import ask as ask_redis
from tests.support.waiting import wait_until

CALLER = str(Path(__file__).with_name("caller.py"))


class Server:
    """A server with a bucket of `rate` requests a second; it notes when it answered and when it refused.

    Args:
        rate: requests a second; None: it never refuses.
        burst: how many at once.
        retry_after: what a refusal says.
        every: it refuses every so many-th request, whatever its bucket holds.
    """

    def __init__(self, rate=None, burst=20.0, retry_after=None, latency=0.1, every=None):
        self.every = every
        self.rate, self.burst, self.retry_after, self.latency = rate, burst, retry_after, latency
        self.level, self.at = burst, time.monotonic()
        self.answered: list[float] = []
        self.refused: list[float] = []
        self.closed_until = 0.0

    async def handle(self, request):
        now = time.monotonic()
        await request.read()
        if self.every and (len(self.answered) + len(self.refused)) % self.every == self.every - 1:
            return self.refuse(now)
        if self.rate is not None:
            self.level = min(self.burst, self.level + (now - self.at) * self.rate)
            self.at = now
            if self.level < 1 or now < self.closed_until:
                return self.refuse(now)
            self.level -= 1
        self.answered.append(now)
        await asyncio.sleep(self.latency)
        usage = {"prompt_tokens": 110, "completion_tokens": 40}
        return web.json_response({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage})

    def refuse(self, now):
        self.refused.append(now)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return web.json_response({"error": {"message": "too many"}}, status=429, headers=headers)

    @asynccontextmanager
    async def running(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
        await runner.cleanup()


async def call(count, redis_url, url, seconds, calls, *options):
    """Let processes ask for a while; returns what each says."""
    argv = [sys.executable, CALLER, redis_url, url, str(seconds), str(calls), *options]
    started = [await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE) for _ in range(count)]
    try:
        return [json.loads((await asyncio.wait_for(one.communicate(), seconds + 60))[0]) for one in started]
    finally:
        for one in started:
            if one.returncode is None:
                one.kill()


@pytest.mark.heavy
async def test_two_processes_share_the_requests_of_a_minute(redis_url):
    server = Server()
    async with server.running() as url:
        said = await call(2, redis_url, url, 20, 10, "rpm=120")
    lasted = server.answered[-1] - server.answered[0]
    print(len(server.answered), lasted, said)
    assert len(server.answered) <= 4 + 2 * lasted + 1
    assert len(server.answered) >= 0.8 * 2 * 20
    assert min(one["answered"] for one in said) >= 0.6 * max(one["answered"] for one in said)


@pytest.mark.heavy
async def test_two_processes_share_the_tokens_of_a_minute(redis_url):
    server = Server()
    async with server.running() as url:
        # An answer is 150 tokens, whatever was thought before.
        said = await call(2, redis_url, url, 15, 10, "tpm=12000")
    lasted = server.answered[-1] - server.answered[0]
    print(len(server.answered), lasted, said)
    assert 0.6 * 12000 / 60 / 150 * 15 <= len(server.answered) <= (12000 / 60 * lasted + 12000 / 30) / 150 + 20


@pytest.mark.heavy
async def test_four_processes_find_a_limit_that_nobody_told_them(redis_url):
    server = Server(rate=20.0)
    async with server.running() as url:
        said = await call(4, redis_url, url, 60, 25)
    began = server.answered[0]
    late = [at for at in server.answered if at > began + 10]
    late_refused = [at for at in server.refused if at > began + 10]
    lasted = server.answered[-1] - began - 10
    goodput = len(late) / lasted / 20
    share = len(server.refused) / (len(server.refused) + len(server.answered))
    late_share = len(late_refused) / (len(late_refused) + len(late))
    print(f"goodput {goodput:.2f}, refused {share:.3f}, after 10 s {late_share:.3f}", said)
    assert goodput >= 0.9
    assert late_share <= 0.3
    assert not any("model_unavailable" in one for one in said)


@pytest.mark.slow
async def test_all_processes_keep_to_a_retry_after(redis_url):
    server = Server(rate=1000.0, retry_after=4, burst=1000)

    async with server.running() as url:
        asking = asyncio.create_task(call(3, redis_url, url, 12, 10))
        while len(server.answered) < 50:
            await asyncio.sleep(0.05)
        await asyncio.sleep(2)  # all have begun
        closed = time.monotonic()
        server.closed_until = closed + 3.5
        said = await asking
    assert server.refused
    # Who was on its way, and who had not heard of it: at most what is in flight, and each but once.
    assert len(server.refused) <= 30
    assert max(server.refused) < closed + 1.5
    quiet = [at for at in server.answered if closed + 1.5 < at < closed + 3.9]
    assert quiet == []
    assert any(at > closed + 4 for at in server.answered)
    assert all(one["waited"] > 3 for one in said)


@pytest.fixture
async def limited(backend, settings):
    """Makes backends with limits, each as in a process of its own."""
    limiters = []

    async def make(**options):
        one = await backend(**options)
        (part,) = one.limited()
        part.limiter = SharedLimiter(Connection(settings, "rate"), part.account(), one.limits)
        limiters.append(part.limiter)
        return one

    yield make
    for limiter in limiters:
        await limiter.close()


async def test_refusals_at_random_delay_only_the_calls_that_were_refused(limited):
    server = Server(every=10, latency=0.0, retry_after=0.2)
    async with server.running() as url:
        backends = [await limited(base_url=url) for _ in range(2)]
        requests = [ask("Hello") for _ in range(400)]
        for first in range(0, 400, 200):
            asked = zip(requests[first : first + 200], backends * 100, strict=True)
            await asyncio.gather(*[one.generate(request) for request, one in asked])
    assert len(server.refused) >= 40
    assert [one.limited()[0].limiter.learned for one in backends] == [None, None]
    assert sum(request.waited > 0 for request in requests) <= len(server.refused)


async def test_a_call_that_was_refused_says_how_long_it_waited(backend):
    server = Server(rate=20.0, burst=1.0)
    async with server.running() as url:
        one = await backend(base_url=url)
        requests = [ask("Hello") for _ in range(2)]
        await asyncio.gather(*[one.generate(request) for request in requests])
    assert any(request.waited > 0 for request in requests)


@pytest.mark.parametrize("text", ["You exceeded your current quota, please check your plan", "insufficient_quota"])
async def test_a_spent_quota_is_not_waited_for(backend, text):
    async def handle(request):
        return web.json_response({"error": {"message": text}}, status=429)

    server = Server()
    server.handle = handle
    async with server.running() as url:
        with pytest.raises(Exception, match="429"):
            await asyncio.wait_for((await backend(base_url=url)).generate(ask("Hello")), 5)


@pytest.mark.heavy
async def test_model_workers_share_the_limit_of_their_command_lines(spawn, settings, tmp_path):
    server = Server()
    config = RunConfig("r", "weather", "tool", "openai:mock", concurrency=50)
    workers = Workers(spawn, settings, tmp_path)
    async with server.running() as url:
        await asyncio.to_thread(workers.start_all, "openai:mock", base_url=url, rpm=300)
        workers.start("model", model="openai:mock", base_url=url, rpm=300)
        await asyncio.to_thread(wait_for_workers, settings, 4)
        await asyncio.to_thread(produce, settings, config, weather(60))
        await asyncio.to_thread(wait_until, lambda: len(server.answered) >= 60, 60)
        lasted = server.answered[-1] - server.answered[0]
        key = await asyncio.to_thread(ask_redis, settings, "KEYS", "gymq:*:rate:*")
        assert await asyncio.to_thread(ask_redis, settings, "PTTL", key[0]) > 0
    assert len(key) == 1
    assert 10 + 5 * lasted + 2 >= 60
    assert lasted < 30
    await asyncio.to_thread(workers.stop)
    assert "Traceback" not in workers.log("model0") + workers.log("model1")
