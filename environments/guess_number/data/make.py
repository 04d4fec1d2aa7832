"""Print the rows of train.jsonl: ranges of three sizes, some with fewer guesses than halving needs at worst."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

COUNT = 100

#: Size of the range, guesses allowed. Halving needs at most 4, 7 and 10 guesses.
GAMES = ((10, 4), (100, 7), (100, 5), (1000, 10))


def rows() -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    choose = random.Random(0)
    for i in range(COUNT):
        size, limit = GAMES[i % len(GAMES)]
        low = choose.choice((0, 1, 50))
        high = low + size - 1
        text = (
            f"I think of a whole number from {low} to {high}. Guess it: write one number per message. "
            f'I answer "higher", "lower" or "correct". You have {limit} guesses; fewer are better.'
        )
        messages = [{"role": "user", "content": text}]
        secret = choose.randint(low, high)
        yield {"id": f"guess-{i:03}", "messages": messages, "secret": secret, "low": low, "high": high, "max_guesses": limit}


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
