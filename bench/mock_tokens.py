"""The mock server in token ids, as vLLM's `/inference/v1/generate` and `/v1/chat/completions/derender`.

Its vocabulary is the bytes, 256 for the end of a turn, and 300 for `ok`, which bytes could say too: tokenized again, that comes
back as other ids. It calls `get_weather` for a city that the prompt's last line names, else says `ok` and the prompt's length.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

#: Ends a turn.
END = 256

#: One id for two letters.
OK = 300

_CITY = re.compile(r"\b(?:in|for|of|at) ([^?.!,\n]+)[^\n]*\nassistant:\n?$")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)


def decode(ids: list[int]) -> str:
    """The text of token ids.

    Args:
        ids: the ids.
    """
    return b"".join(b"ok" if one == OK else b"" if one == END else bytes([one]) for one in ids).decode()


def generated(body: bytes) -> bytes:
    """The answer to a request of token ids.

    Args:
        body: the request.
    """
    asked = msgspec.json.decode(body)
    prompt = decode(asked["token_ids"])
    city = _CITY.search(prompt)
    if city:
        call = msgspec.json.encode({"name": "get_weather", "arguments": {"city": city[1]}})
        ids = list(b"<tool_call>" + call + b"</tool_call>")
    else:
        ids = [OK, *f" {len(asked['token_ids'])}".encode()]
    stop = asked["sampling_params"].get("stop")
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "stop_reason": stop,
        "token_ids": [*ids, *(stop or "").encode()],
    }
    if not stop:
        choice["token_ids"].append(END)
    if asked["sampling_params"].get("max_tokens"):
        choice |= {"finish_reason": "length", "token_ids": ids[: asked["sampling_params"]["max_tokens"]]}
    if asked["sampling_params"].get("logprobs") is not None:
        choice["logprobs"] = {"content": [{"token_id": one, "logprob": -one / 8} for one in choice["token_ids"]]}
    half = len(choice["token_ids"]) // 2
    choice["weight_versions"] = [{"version": "3", "start": 0, "end": half}, {"version": "4", "start": half, "end": len(ids)}]
    usage = {"prompt_tokens": len(asked["token_ids"]), "completion_tokens": len(choice["token_ids"])}
    usage["prompt_tokens_details"] = {"cached_tokens": 3}
    return msgspec.json.encode({"request_id": "1", "model": asked["model"], "choices": [choice], "usage": usage})


def message(body: bytes) -> bytes:
    """What message token ids are.

    Args:
        body: the request.
    """
    asked = msgspec.json.decode(body)
    choice = asked["generate_response"]["choices"][0]
    text = decode(choice["token_ids"])
    calls = []
    for number, found in enumerate(_CALL.findall(text) if asked["chat_request"].get("tools") else ()):
        call = msgspec.json.decode(found)
        function = {"name": call["name"], "arguments": msgspec.json.encode(call["arguments"]).decode()}
        calls.append({"id": f"call_{number}", "type": "function", "function": function})
    made = {"role": "assistant", "content": None if calls else text, "tool_calls": calls}
    finish = "tool_calls" if calls else choice["finish_reason"]
    return msgspec.json.encode({"model": asked["model"], "choices": [{"index": 0, "message": made, "finish_reason": finish}]})
