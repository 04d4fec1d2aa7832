"""Write `demo.jsonl`: 200 tasks of five environments in one file, for `make demo`. Run: python environments/demo.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Tasks of each environment.
TASKS = {"reasoning_gym": 96, "weather": 44, "counter": 36, "guess_number": 12, "multiple_choice": 12}

FOLDER = Path(__file__).parent


def call(name: str, **arguments: Any) -> dict[str, str]:
    """Return a tool call as text: the template of the recorded model, SmolLM2, has no place for another form."""
    text = json.dumps({"name": name, "arguments": arguments})
    return {"role": "assistant", "content": f"<tool_call>\n{text}\n</tool_call>"}


def result(text: str) -> dict[str, str]:
    """Return a tool's message."""
    return {"role": "tool", "content": text, "tool_call_id": "example"}


def user(text: str) -> dict[str, str]:
    """Return a user's message."""
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    """Return a model's message."""
    return {"role": "assistant", "content": text}


#: Conversations before the question: so small a model calls tools only after examples.
EXAMPLES: dict[str, list[dict[str, str]]] = {
    "weather": [
        user("What is the weather in Rome?"),
        call("get_weather", city="Rome"),
        result("The weather in Rome is sunny."),
        answer("It is sunny in Rome."),
        user("Do I need a coat in Reykjavík?"),
        call("get_weather", city="Reykjavík"),
        result("The weather in Reykjavík is snowy."),
        answer("Yes, take a coat: it is snowy in Reykjavík."),
        user("How is the weather at the moment in Tokyo?"),
        call("get_weather", city="Tokyo"),
        result("The weather in Tokyo is rainy."),
        answer("It is rainy in Tokyo."),
    ],
    "counter": [
        user("add 5 then get the count"),
        call("increment_counter", count=5),
        result('{"success": true}'),
        call("get_counter_value"),
        result('{"count": 12}'),
        answer("The count is 12."),
        user("add 3 then add -8 then get the count"),
        call("increment_counter", count=3),
        result('{"success": true}'),
        call("increment_counter", count=-8),
        result('{"success": true}'),
        call("get_counter_value"),
        result('{"count": 7}'),
        answer("The count is 7."),
    ],
}


def rows(name: str) -> list[dict[str, Any]]:
    """Return an environment's tasks: evenly spread, because neighbours in its file are alike, and no prompt twice.

    Args:
        name: the environment's name.
    """
    prompts = {}
    for line in (FOLDER / name / "data" / "train.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        prompts.setdefault(json.dumps(row["messages"]), row)
    distinct = list(prompts.values())
    chosen = [distinct[i * len(distinct) // TASKS[name]] for i in range(TASKS[name])]
    for row in chosen:
        row["messages"] = [*row["messages"][:-1], *EXAMPLES.get(name, []), row["messages"][-1]]
    return [{"environment": name, **row} for row in chosen]


def main() -> None:
    """Write the file."""
    with (FOLDER / "demo.jsonl").open("w", encoding="utf-8") as out:
        for name in TASKS:
            for row in rows(name):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
