"""Print the rows of train.jsonl: 15 entries of each of eight generators that need no download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

SYSTEM = "Solve the problem step by step. Then write the answer, in the form that is asked for, as <answer>answer</answer>."

DATASETS = (
    *("chain_sum", "gcd", "knights_knaves", "leg_counting"),
    *("mini_sudoku", "number_sorting", "simple_equations", "spell_backward"),
)
SEED = 0
SIZE = 15


def rows() -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    import reasoning_gym

    for dataset in DATASETS:
        for i, entry in enumerate(reasoning_gym.create_dataset(dataset, seed=SEED, size=SIZE)):
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": entry["question"]}]
            yield {
                "id": f"{dataset}-{i:02}",
                "messages": messages,
                "dataset": dataset,
                "seed": SEED,
                "size": SIZE,
                "index": i,
                "entry": entry,
            }


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row, ensure_ascii=False))
