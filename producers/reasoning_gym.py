"""Producer of Reasoning Gym's rows: questions of a kind in any number, each with the data that score an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from gymq.errors import DataError, UsageError

#: The seed of a source without one: fixed, since a run that is resumed must get the same rows.
SEED = 42

_WORDS = {"True": True, "False": False, "None": None}


def read(source: str, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield rows, each made on demand.

    Args:
        source: the data set's name and parameters, such as `chain_sum?size=500&seed=42`.
        start: the index of the first row.

    Yields:
        The row's place (`reasoning_gym:chain_sum?size=500:17`) and the row: `prompt`, `entry` and `environment`.

    Raises:
        UsageError: the data set or a parameter does not exist, or reasoning-gym is not installed.
        DataError: Reasoning Gym fails to make a row.
    """
    source = source.removeprefix("reasoning_gym:")
    where = f"reasoning_gym:{source}"
    dataset = _dataset(source, where)
    for index in range(start, len(dataset)):
        try:
            question = dataset[index]
            entry = {field: question.get(field) for field in ("question", "answer", "metadata")}
            row = {"prompt": entry["question"], "entry": entry, "environment": "reasoning_gym"}
            yield f"{where}:{index + 1}", msgspec.json.encode(row, enc_hook=_plain)
        except Exception as error:  # the generators document no errors
            raise DataError(f"{where}:{index + 1}: {type(error).__name__}: {error}; try another seed or parameters") from None


def _dataset(source: str, where: str) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise UsageError("making rows needs reasoning-gym; pip install 'gymq[data]'") from None
    name, _, query = source.partition("?")
    if name not in DATASETS:
        raise UsageError(f"{where}: Reasoning Gym has no {name!r}; it has {', '.join(sorted(DATASETS))}")
    parameters = {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}
    for key in ("size", "seed"):
        if type(parameters.get(key, 0)) is not int:
            raise UsageError(f"{where}: {key} is {str(parameters[key])[:60]!r}; give a whole number")
    fields = {field.name for field in dataclasses.fields(DATASETS[name][1])}
    unknown = sorted(parameters.keys() - fields)
    if unknown:
        raise UsageError(f"{where}: {name} has no parameter {unknown[0]!r}; it has {', '.join(sorted(fields))}")
    try:
        return create_dataset(name, **{"seed": SEED, **parameters})
    except Exception as error:
        raise UsageError(f"{where}: {type(error).__name__}: {error}; correct the parameters") from None


def _value(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _plain(value: Any) -> Any:
    """Convert numpy's and fractions' values in the metadata to plain ones."""
    if isinstance(value, str):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)
