"""Print the rows of train.jsonl: one to four numbers to add, some of them negative."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

COUNT = 100


def rows() -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    choose = random.Random(0)
    for i in range(COUNT):
        start = choose.randint(0, 50)
        numbers = [choose.randint(-9, 30) for _ in range(1 + i % 4)]
        text = " then ".join([*(f"add {number}" for number in numbers), "get the count"])
        messages = [{"role": "user", "content": text}]
        expected = start + sum(numbers)
        yield {"id": f"counter-{i:03}", "messages": messages, "initial_count": start, "expected_count": expected}


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
