"""An endpoint of a model that does as a test says, and answers to give."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from gymq.errors import Fault

KEY = "sk-very-secret-key"


GOOD = {
    "chat": {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]},
    "responses": {"status": "completed", "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]},
}


def http(body=b"", status=200, kind="application/json", length=None, **headers):
    """The bytes of an answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def js(value):
    """A good HTTP answer with a JSON value."""
    return http(msgspec.json.encode(value))


def chat(**message):
    """A chat answer with a message."""
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


def called(*calls):
    """A chat answer with tool calls."""
    return js(chat(content=None, tool_calls=list(calls)))


def call(name="f", arguments="{}", **more):
    """A tool call."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def item(**fields):
    """A Responses answer with a function call."""
    return js({"status": "completed", "output": [{"type": "function_call", "call_id": "a", "name": "f", **fields}]})


class Endpoint:
    """A server that does one thing to every request.

    Args:
        act: bytes that it sends before it closes, or a coroutine of reader and writer.
    """

    def __init__(self, act=b""):
        self.act = act
        self.asked = 0
        self.heads: list[bytes] = []

    async def __call__(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            self.heads.append(head)
            if isinstance(self.act, bytes):
                writer.write(self.act)
                await writer.drain()
            else:
                await asyncio.wait_for(self.act(reader, writer), 10)
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self):
        """Its address."""
        server = await asyncio.start_server(self, "127.0.0.1", 0, limit=1 << 22)
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        server.close()


def check(fault: Fault):
    """What holds for every fault: one short line that all can read, without the key."""
    assert fault.message.isprintable()
    assert KEY not in fault.message
    assert "Traceback" not in fault.message
    assert 0 < len(fault.message) < 500
    msgspec.msgpack.encode(fault)
