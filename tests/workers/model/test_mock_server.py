"""The mock model server is a real HTTP server."""

from __future__ import annotations

import asyncio

import aiohttp
import openai

from tests.support.model_server import run_server


async def test_the_openai_client_understands_it(server):
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none") as client:
        chat = await client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "Weather in Rome?"}])
        assert chat.choices[0].message.tool_calls[0].function.arguments == '{"city":"Rome"}'
        answer = await client.responses.create(model="mock", input="Hello")
        assert answer.output_text == "You said: Hello"
        assert [model.id async for model in client.models.list()] == ["mock"]


async def test_pipelined_requests_are_answered_in_order(server):
    host, port = server.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for i in range(5):
        body = b'{"model":"mock","messages":[{"role":"tool","content":"%d"}]}' % i
        request = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        for part in (request[:30], request[30:90], request[90:]):
            writer.write(part)
            await writer.drain()
    for i in range(5):
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
        assert b"You said: %d" % i in body
    writer.close()


async def test_flags_make_it_slow_and_bad():
    ask = {"model": "mock", "messages": [{"role": "user", "content": "Weather in Rome?"}]}
    for url in run_server("--latency", "0.05", "--fail-rate", "1", "--status", "503", "--times", "2", "--script", "echo"):
        async with aiohttp.ClientSession() as session:
            answers = [await session.post(f"{url}/v1/chat/completions", json=ask) for _ in range(3)]
            assert [answer.status for answer in answers] == [503, 503, 200]
            message = (await answers[2].json())["choices"][0]["message"]
            assert message["content"] == "You said: Weather in Rome?"
