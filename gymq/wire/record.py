"""A finished rollout's record as it stands in Redis."""

from __future__ import annotations

#: The names in each entry: rollout, whether it is its group's last, commit number, record.
ENTRY_FIELDS = [b"r", b"l", b"n", b"b"]

#: Digits of a row, a sample or a commit number: what is seen is kept as bits, and a forged number must not fill the memory.
MAX_DIGITS = 9


def is_rollout_entry(fields: list[bytes], run: str) -> bool:
    """Whether an entry is a finished rollout of a run: whoever may write to Redis may write to its results, too.

    Args:
        fields: names and values in turn.
        run: the run's name.
    """
    if len(fields) != 8 or fields[::2] != ENTRY_FIELDS or not _number(fields[5]):
        return False
    rid, record, prefix = fields[1], fields[7], run.encode() + b"."
    place = rid.removeprefix(prefix).split(b".")
    shaped = rid.startswith(prefix) and len(place) == 2 and all(map(_number, place))
    return shaped and record.startswith(b'{"rollout_id":"%b",' % rid) and record.endswith(b"}") and b"\n" not in record


def _number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= MAX_DIGITS
