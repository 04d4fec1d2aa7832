"""A tokenizer and a chat template for tests without `transformers`."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec

from bench.mock_tokens import END, decode

#: What stands for an image, as text and as id.
IMAGE = 1


class Bytes:
    """A tokenizer whose ids are bytes, with the mock server's two others; it has what `Renderer` asks of one."""

    eos_token_id = END
    added_tokens_decoder = {END: SimpleNamespace(content="<|end|>", special=True)}

    def apply_chat_template(self, messages, tools=None, tokenize=False, add_generation_prompt=True, **_):
        text = "".join(f"{m['role']}:\n{self._said(m['content'])}{self._calls(m)}<|end|>\n" for m in messages)
        return text + ("assistant:\n" if add_generation_prompt else "")

    def _said(self, content):
        if isinstance(content, list):
            return "".join(part["text"] if part["type"] == "text" else chr(IMAGE) for part in content)
        return content or ""

    def _calls(self, message):
        calls = [{k: call["function"][k] for k in ("name", "arguments")} for call in message.get("tool_calls") or ()]
        return "".join(f"<tool_call>{msgspec.json.encode(call).decode()}</tool_call>" for call in calls)

    def encode(self, text, add_special_tokens=False):
        parts = text.split("<|end|>")
        ids = [id for part in parts for id in [*part.encode(), END]]
        return ids[:-1]

    def decode(self, ids, **_):
        return decode(list(ids))
