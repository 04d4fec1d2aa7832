"""`--gpus 0-7`: one worker for each device, or for each few that a model is split over."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gymq.errors import UsageError

_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def shares(gpus: str, options: dict[str, Any]) -> list[str]:
    """What `--gpu` each worker gets.

    Args:
        gpus: numbers and ranges, as in `0-3,6`.
        options: the backend's; `engine` says over how many devices a model is split (`tensor_parallel_size`).

    Raises:
        UsageError: it makes no sense, or the devices cannot be shared out evenly.
    """
    numbers: list[int] = []
    for part in gpus.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UsageError(f"--gpus is {gpus!r}; write numbers and ranges, as in 0-7 or 0,2,4-5")
        numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
    if len(set(numbers)) != len(numbers):
        raise UsageError(f"--gpus is {gpus!r}; it names a device twice")
    if options.get("gpu") is not None:
        raise UsageError("--gpus starts a worker for each device, --gpu says which one worker gets; give one of them")
    engine = options.get("engine") or {}
    engine = msgspec.json.decode(engine) if isinstance(engine, str) else engine
    size = str(engine.get("tensor_parallel_size", 1))
    if not size.isdigit() or int(size) < 1 or len(numbers) % int(size):
        raise UsageError(f"--gpus {gpus} are {len(numbers)} devices, which tensor_parallel_size={size} does not divide")
    step = int(size)
    return [",".join(map(str, numbers[i : i + step])) for i in range(0, len(numbers), step)]
