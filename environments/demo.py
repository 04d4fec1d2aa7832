"""Writes `demo.jsonl`: a few tasks of each environment in one file, for `make demo`. Run: python environments/demo.py"""

from __future__ import annotations

import json
from pathlib import Path

#: Tasks of each environment; with four samples each they are 240 rollouts.
TASKS = 12

FOLDER = Path(__file__).parent


def main() -> None:
    """Write the file."""
    with (FOLDER / "demo.jsonl").open("w") as out:
        for name in ("weather", "counter", "guess_number", "multiple_choice", "reasoning_gym"):
            rows = (FOLDER / name / "data" / "train.jsonl").read_text().splitlines()
            # Evenly spread: neighbours in these files are of one kind.
            for row in rows[:: len(rows) // TASKS][:TASKS]:
                out.write(json.dumps({"environment": name, **json.loads(row)}) + "\n")


if __name__ == "__main__":
    main()
