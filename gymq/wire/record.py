"""A finished rollout's record as it stands in Redis."""

from __future__ import annotations

from gymq.wire.ids import RolloutId

#: The names in each entry: rollout, whether it is its group's last, commit number, record.
ENTRY_FIELDS = [b"r", b"l", b"n", b"b"]

#: Digits of a commit number; more are a forgery.
MAX_SEQ_DIGITS = 9


def rollout_of_entry(fields: list[bytes], run: str) -> RolloutId | None:
    """Return the id of the finished rollout in an entry of a run's results; None if the entry is forged.

    Args:
        fields: the entry's names and values in turn.
        run: the run's name.
    """
    if len(fields) != 8 or fields[::2] != ENTRY_FIELDS or not fields[5].isdigit() or len(fields[5]) > MAX_SEQ_DIGITS:
        return None
    rollout, record = RolloutId.check(fields[1]), fields[7]
    whole = record.startswith(b'{"rollout_id":"%b",' % fields[1]) and record.endswith(b"}") and b"\n" not in record
    return rollout if rollout is not None and rollout.run == run and whole else None
