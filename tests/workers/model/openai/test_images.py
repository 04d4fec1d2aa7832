"""Images of a row reach the model as content parts, in each API's own form."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from gymq.api.backend import Request
from gymq.ingest.row_parser import parse_row

#: A PNG of one pixel.
URL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="

ROWS = {
    "chat": {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}]}]},
    "nemo": {"responses_create_params": {"input": [{"role": "user", "content": [
        {"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": URL, "detail": "low"}]}]}},
}  # fmt: skip

ANSWERS = {
    "chat": {"choices": [{"message": {"content": "A dot."}}]},
    "responses": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "A dot."}]}]},
}

SENT = {
    "chat": ROWS["chat"]["messages"][0]["content"],
    "responses": [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": URL, "detail": "low"},
    ],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_an_image_is_sent_as_a_part_of_its_message(backend, row, api):
    bodies = []

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        bodies.append(json.loads(await reader.readexactly(int(re.search(rb"(?i)content-length: *(\d+)", head)[1]))))
        body = json.dumps(ANSWERS[api]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    task = parse_row(ROWS[row], where="rows:1", environment="weather", known={"weather"})
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        await (await backend(base_url=url, api=api)).generate(Request("run.0.0", "weather", task.messages, b"{}"))
    ((message,),) = [body["messages" if api == "chat" else "input"] for body in bodies]
    assert message["role"] == "user"
    assert message["content"] == SENT[api]
