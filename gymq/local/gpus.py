"""`--gpus 0-7`: one worker for each device, or for each few that a model is split over."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gymq.errors import UsageError

_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def shares(gpus: str, options: dict[str, Any]) -> list[str]:
    """Return the `--gpu` of each worker.

    Args:
        gpus: numbers and ranges of devices, as in `0-3,6`.
        options: the backend's options; `engine` says over how many devices a model is split (`tensor_parallel_size`).

    Raises:
        UsageError: `gpus` makes no sense, or the devices cannot be shared out evenly.
    """
    numbers: list[int] = []
    for part in gpus.split(","):
        bounds = _RANGE.fullmatch(part.strip())
        if bounds is None or int(bounds[2] or bounds[1]) < int(bounds[1]):
            raise UsageError(f"--gpus is {gpus!r}; write numbers and ranges, as in 0-7 or 0,2,4-5")
        numbers += range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
    if len(set(numbers)) != len(numbers):
        raise UsageError(f"--gpus {gpus!r} names a device twice; name each once")
    if options.get("gpu") is not None:
        raise UsageError("--gpus starts a worker for each device, --gpu says which one worker gets; give one of them")
    engine = options.get("engine") or {}
    engine = msgspec.json.decode(engine) if isinstance(engine, str) else engine
    size = str(engine.get("tensor_parallel_size", 1))
    if not size.isdigit() or int(size) < 1 or len(numbers) % int(size):
        raise UsageError(f"--gpus {gpus} are {len(numbers)} devices, which tensor_parallel_size={size} does not divide")
    step = int(size)
    return [",".join(map(str, numbers[i : i + step])) for i in range(0, len(numbers), step)]
