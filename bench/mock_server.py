"""A model server that costs next to nothing: OpenAI's chat completions and Responses, answered by a script at once.

Run as `python -m bench.mock_server --port 0`; it prints `listening on http://127.0.0.1:PORT`. The answer depends on the last
message only: a user's gets a call of `get_weather` for the city that it names, anything else a sentence that repeats it
(`--script echo`: always a sentence).

A model's name can ask for a failure, so that one server serves all tests: `mock-KIND`, `mock-KIND/TIMES` (only the first
TIMES requests under that exact name) or `mock-KIND/TIMES/TAG`. KIND is an HTTP status, or a word that `misbehave`,
`chat_answer` or `responses_answer` knows.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
from collections import Counter
from typing import Any

import msgspec

from bench import mock_tokens as tokens
from bench.mock_stream import chunked, events

_CITY = re.compile(r"\b(?:in|for|of|at) ([^?.!,]+)")
_VERSION = re.compile(rb"\?api-version=[\w-]+ HTTP")
_AZURE_KEY = re.compile(rb"\r\n(?:api-key:[ \t]*|authorization:[ \t]*Bearer )\S", re.I)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.I)
_SERVER_WORDS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 429: b"Too Many Requests"}

_OVERFLOW = (
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
    "(4000 in the messages, 1000 in the completion). Please reduce the length of the messages or completion."
)


class _Ask(msgspec.Struct):
    model: str = ""
    messages: list[msgspec.Raw] = []
    input: list[msgspec.Raw] | str = []
    return_token_ids: bool = False
    logprobs: bool = False
    stream: bool = False


class _Turn(msgspec.Struct):
    role: str = ""
    type: str = ""
    content: Any = None
    output: Any = None


_ask = msgspec.json.Decoder(_Ask)
_turn = msgspec.json.Decoder(_Turn)
_encode = msgspec.json.encode


class Options(msgspec.Struct):
    """How the server answers.

    Args:
        script: `weather` or `echo`.
        latency: seconds before an answer.
        fail_rate: the share of requests that get `status`, from 0 to 1.
        status: the status of failures.
        retry_after: seconds for the Retry-After header of failures; None: no header.
        times: how many requests fail at most.
        called: what it calls the model in its answers; empty: what the request calls it.
        key: the key that requests must have, in lower case; empty: any, or none.
    """

    script: str = "weather"
    latency: float = 0.0
    fail_rate: float = 0.0
    status: int = 500
    retry_after: float | None = None
    times: float = float("inf")
    called: str = ""
    key: str = ""


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection: keep-alive, pipelined requests answered in order, bodies with Content-Length."""

    def __init__(self, options: Options, asked: Counter[str]) -> None:
        self.options = options
        self.asked = asked
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.buffer = buffer = self.buffer + data if self.buffer else data
        while True:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                break
            length = _LENGTH.search(buffer, 0, end)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(buffer) < stop:
                break
            self.request(buffer[:end], buffer[end + 4 : stop])
            buffer = buffer[stop:]
        self.buffer = buffer

    def request(self, head: bytes, body: bytes) -> None:
        """Answer one request."""
        if not head.startswith(b"POST "):
            if head.startswith(b"GET /v1/models"):
                return self.send(b'{"object":"list","data":[{"id":"mock","object":"model","owned_by":"gymq"}]}')
            return self.send(b'{"error":{"message":"no such path"}}', 404)
        # Azure's addresses name the deployment and the API's version, and its keys have a header of their own.
        if head.startswith(b"POST /openai/") and not (_VERSION.search(head) and _AZURE_KEY.search(head)):
            return self.send(b'{"error":{"code":"401","message":"no api-version, or neither api-key nor token"}}', 401)
        if self.options.key and f"authorization: bearer {self.options.key}".encode() not in head.lower():
            return self.send(b'{"error":{"message":"Incorrect API key provided"}}', 401)
        try:
            ask = _ask.decode(body)
        except msgspec.DecodeError as error:
            return self.send(_encode({"error": {"message": str(error), "type": "BadRequestError"}}), 400)
        options = self.options
        if options.fail_rate and self.asked[""] < options.times and random.random() < options.fail_rate:
            self.asked[""] += 1
            return self.fail(options.status)
        if head.startswith(b"POST /v1/chat/completions/derender"):
            return self.send(tokens.message(body))
        kind = ""
        if ask.model.startswith("mock-"):
            kind, _, times = ask.model[5:].partition("/")
            self.asked[ask.model] += 1
            if times and self.asked[ask.model] > int(times.partition("/")[0]):
                kind = ""
        if kind.isdigit():
            return self.fail(int(kind))
        if kind == "short":  # a context of two messages
            kind = "overflow" if len(ask.messages) > 2 else "tokens"
        ask.model = options.called or ask.model
        if head.startswith(b"POST /inference/v1/generate"):
            answer = tokens.generated(body)
        elif head.startswith((b"POST /v1/responses", b"POST /openai/responses")):
            answer = responses_answer(ask, body, kind)
        else:
            answer = chat_answer(ask, body, kind, options.script)
        if ask.stream:
            return self.stream(kind, answer)
        if kind and self.misbehave(kind, head, answer):
            return None
        if options.latency:
            self.loop.call_later(options.latency, self.send, answer)
            return None
        return self.send(answer)

    def stream(self, kind: str, answer: bytes) -> None:
        """Answer piece by piece; `stall` and `cut` end behind the third piece, `error` says there that it failed."""
        if kind == "hang":
            return
        pieces = events(b'{"error":{"message":"upstream is busy","code":502}}' if kind == "error200" else answer)
        if kind in ("stall", "cut", "error"):
            pieces = pieces[:3]
        if kind == "error":
            pieces += events(b'{"error":{"message":"it broke","code":500}}')
        if kind == "badjson":
            pieces[1] = b"data: {oops\n\n"
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            self.transport.write(chunked(piece))
        if kind == "cut":
            self.transport.close()
        elif kind != "stall":
            self.transport.write(b"0\r\n\r\n")

    def misbehave(self, kind: str, head: bytes, answer: bytes) -> bool:
        """Answer wrongly, if the kind of failure is one of transport; say whether it was."""
        if kind == "close":
            self.transport.close()
        elif kind == "cut":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n" + answer)
            self.transport.close()
        elif kind == "badjson":
            self.send(answer[:-20])
        elif kind == "nonsense":
            self.send(b'{"choices":[{"message":"hello"}],"output":"hello"}')
        elif kind == "nochoices":
            self.send(b'{"choices":[]}')
        elif kind == "html":
            self.send(b"<html>Welcome</html>", kind=b"text/html")
        elif kind == "overflow":
            self.send(_encode({"error": {"message": _OVERFLOW, "type": "BadRequestError", "code": 400}}), 400)
        elif kind == "error200":
            self.send(b'{"error":{"message":"upstream is busy","code":502}}')
        elif kind == "keyecho":
            key = re.search(rb"(?i)(?:authorization|api-key): *(.*)", head)
            self.send(_encode({"error": {"message": f"bad key: {key[1].decode() if key else ''}"}}), 401)
        elif kind == "huge":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(70):
                self.transport.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        elif kind == "date":
            self.send(b"{}", 503, extra=b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n")
        elif kind != "hang":
            return False
        return True

    def fail(self, status: int) -> None:
        """Answer with an error."""
        after = self.options.retry_after
        extra = b"" if after is None else b"Retry-After: %g\r\n" % after
        extra += b"Location: /v1/models\r\n" if 300 <= status < 400 else b""
        self.send(
            _encode({"error": {"message": f"failing with {status}", "type": "mock", "code": status}}), status, extra=extra
        )

    def send(self, body: bytes, status: int = 200, kind: bytes = b"application/json", extra: bytes = b"") -> None:
        """Write a response."""
        self.transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b"
            % (status, _SERVER_WORDS.get(status, b"Error"), kind, extra, len(body), body)
        )


def chat_answer(ask: _Ask, body: bytes, kind: str, script: str) -> bytes:
    """The body of a chat completion."""
    last = _turn.decode(ask.messages[-1]) if ask.messages else _Turn()
    city = _CITY.search(_text(last.content)) if last.role == "user" and script == "weather" else None
    finish = {"length": "length", "filter": "content_filter", "abort": "abort"}.get(kind, "tool_calls" if city else "stop")
    if city:
        arguments: Any = {"city": city[1].strip()}
        if kind != "objects":
            arguments = _encode(arguments).decode()
        function = {"name": "get_weather", "arguments": arguments}
        call = {"id": f"call_{len(ask.messages)}", "type": "function", "function": function}
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
    else:
        message = {"role": "assistant", "content": f"You said: {_text(last.content)}"}
    if kind == "reasoning":
        message["reasoning_content"] = "Let me think."
    if kind == "refusal":
        message = {"role": "assistant", "content": None, "refusal": "I will not."}
    if kind == "bare":
        message = {"role": "assistant", "content": None}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": len(body) // 4, "completion_tokens": 7, "total_tokens": len(body) // 4 + 7}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": ask.model,
        "choices": [choice],
        "usage": usage,
    }
    if kind in ("tokens", "named", "mismatch") or ask.return_token_ids:
        _add_tokens(kind, answer, ask)
    if kind == "" and not ask.logprobs:
        choice.pop("logprobs", None)
    return _encode(answer)


def _add_tokens(kind: str, answer: dict[str, Any], ask: _Ask) -> None:
    """Add token ids as vLLM gives them: a message is one id per byte, an answer the ids of the message that it becomes."""
    choice = answer["choices"][0]
    ids = list(_encode(choice["message"]["content"] or "call"))
    if kind != "named":
        answer["prompt_token_ids"] = [byte for turn in ask.messages for byte in _encode(_turn.decode(turn).content or "call")]
        choice["token_ids"] = ids
    listed = [{"token": f"token_id:{id}" if kind == "named" else chr(id), "logprob": -id / 8, "top_logprobs": []} for id in ids]
    choice["logprobs"] = {"content": listed[:-1] if kind == "mismatch" else listed}
    answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 3}
    answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 2}


def responses_answer(ask: _Ask, body: bytes, kind: str) -> bytes:
    """The body of a Responses answer."""
    last = _turn.decode(ask.input[-1]) if isinstance(ask.input, list) and ask.input else _Turn(role="user", content=ask.input)
    text = _text(last.output if last.type == "function_call_output" else last.content)
    city = _CITY.search(text) if last.role == "user" else None
    output: list[dict[str, Any]] = []
    if kind == "reasoning":
        output.append({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Let me think."}]})
    if city:
        arguments = _encode({"city": city[1].strip()}).decode()
        call_id = f"call_{len(ask.input)}"
        output.append(
            {"type": "function_call", "id": "fc_1", "call_id": call_id, "name": "get_weather", "arguments": arguments}
        )
    else:
        part = {"type": "output_text", "text": f"You said: {text}", "annotations": []}
        if kind == "refusal":
            part = {"type": "refusal", "refusal": "I will not."}
        output.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    usage = {"input_tokens": len(body) // 4, "output_tokens": 7, "total_tokens": len(body) // 4 + 7}
    answer: dict[str, Any] = {"id": "resp_1", "object": "response", "created_at": 1, "model": ask.model, "status": "completed"}
    answer |= {"output": output, "usage": usage, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    if kind in ("length", "filter"):
        reason = "max_output_tokens" if kind == "length" else "content_filter"
        answer |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    if kind == "abort":
        answer |= {"status": "failed", "output": [], "error": {"code": "server_error", "message": "it failed"}}
    return _encode(answer)


def _text(content: Any) -> str:
    """A message's text; parts are joined."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


async def serve(port: int, options: Options) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    asked: Counter[str] = Counter()
    server = await loop.create_server(lambda: Connection(options, asked), "127.0.0.1", port, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    await done.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="bench.mock_server", description="An OpenAI-compatible server that costs next to nothing."
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--script", choices=("weather", "echo"), default="weather")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--fail-rate", type=float, default=0.0, help="share of requests that fail, 0 to 1")
    parser.add_argument("--status", type=int, default=500, help="what they fail with")
    parser.add_argument("--retry-after", type=float, help="seconds that they ask to wait")
    parser.add_argument("--called", default="", help="what it calls the model in its answers")
    parser.add_argument("--key", default="", help="the key that requests must have, lower case; empty: none")
    parser.add_argument("--times", type=float, default=float("inf"), help="how many fail at most")
    args = vars(parser.parse_args())
    port = args.pop("port")
    options = Options(**args)
    asyncio.run(serve(port, options))


if __name__ == "__main__":
    main()
