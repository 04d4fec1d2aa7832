"""Print the rows of train.jsonl: five ways to ask about each of 24 cities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

SYSTEM = "You are a helpful assistant. Look the weather up with get_weather before you answer."

CITIES = (
    *("Amsterdam", "Athens", "Bogotá", "Cairo", "Chicago", "Dakar", "Delhi", "Dublin"),
    *("Hanoi", "Helsinki", "Istanbul", "Kyoto", "Lagos", "Lima", "Madrid", "Montreal"),
    *("Nairobi", "New York", "Oslo", "Paris", "San Francisco", "São Paulo", "Sydney", "Tbilisi"),
)

QUESTIONS = (
    "What is the weather in {}?",
    "Do I need a coat in {}?",
    "What is it like outside in {}?",
    "Give me the weather for {}.",
    "How is the weather at the moment in {}?",
)


def rows() -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    pairs = [(city, question) for question in QUESTIONS for city in CITIES]
    for i, (city, question) in enumerate(pairs):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.format(city)}]
        yield {"id": f"weather-{i:03}", "messages": messages}


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row, ensure_ascii=False))
