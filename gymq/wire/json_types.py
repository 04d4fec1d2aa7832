"""Types of decoded JSON, for what gymq passes on without looking inside."""

from __future__ import annotations

from typing import Any

#: A decoded JSON object.
JsonObject = dict[str, Any]

#: A message's content in chat completions: text, or content parts such as `{"type": "image_url", ...}`.
Content = str | list[JsonObject]
