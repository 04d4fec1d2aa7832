"""A finished rollout's token ids, as trainers want them: one row of arrays for each branch.

A branch is a run of answers in which each prompt goes on from the prompt and the answer before it. Where a prompt does not,
because the chat template or the agent rewrote what came before, a new branch begins.
"""

from __future__ import annotations

import sys
from array import array
from typing import Any

import msgspec

from gymq.errors import DataError
from gymq.wire.json_types import JsonObject
from gymq.wire.record import CallRecord, RolloutRecord, narrow

_Record = narrow(RolloutRecord, calls=narrow(CallRecord, "call", "message", "tokens"))


class Span(msgspec.Struct, frozen=True):
    """One answer of the model within a branch.

    Args:
        call: the call that gave it, `step.number`, as in the rollout's `calls`.
        start: the index of its first token in the branch.
        end: the index after its last token.
        message: the index of its message in the rollout's `messages`; -1: unknown.
    """

    call: str
    start: int
    end: int
    message: int


class Branch(msgspec.Struct):
    """One sequence of tokens; all arrays have its length, and `numpy.frombuffer` reads them without a copy.

    Args:
        token_ids: prompts and answers, int32.
        loss_mask: 1 where the model sampled the token in this branch, else 0, uint8. A token of an earlier branch that stands
            in this one's prompt has 0: it is trained where it was sampled, once.
        logprobs: of the sampled tokens, as they were sampled, float32; NaN where unknown, 0.0 where the mask is 0.
        versions: the policy version that sampled the token, int32; -1 where unknown or where the mask is 0.
        prompt_len: how many tokens come before the first answer of the branch.
        answers: the branch's answers.
    """

    token_ids: array[int]
    loss_mask: array[int]
    logprobs: array[float]
    versions: array[int]
    prompt_len: int
    answers: list[Span]

    def __repr__(self) -> str:
        # A branch may have a hundred thousand tokens.
        size = f"{len(self.token_ids)} tokens, {sum(self.loss_mask)} of them sampled"
        return f"<Branch: {size}, {self.prompt_len} of the prompt, {len(self.answers)} answers>"


def branches(record: RolloutRecord | JsonObject) -> list[Branch]:
    """Put together the branches of a finished rollout.

    Args:
        record: the decoded record, or a dict with its `calls`.

    Returns:
        the branches, in the order in which they began; none if the model's server gave no token ids, or none of prompts.

    Raises:
        DataError: the record's token ids do not fit together.
    """
    made: list[Branch] = []
    before, branch = array("i"), None
    calls = record.calls if isinstance(record, RolloutRecord) else msgspec.convert(record, _Record).calls
    for number, call in enumerate(calls):
        tokens = call.tokens
        if tokens is None:
            continue
        output, logprobs = _array("i", tokens.output, number), _array("f", tokens.logprobs, number)
        if tokens.prompt_start > len(before):
            raise DataError(f"calls[{number}].tokens: prompt_start is beyond the previous call's tokens; the record is damaged")
        goes_on = tokens.prompt_start == len(before)
        new = _array("i", tokens.prompt, number)
        whole = before[: tokens.prompt_start] + new
        before = whole + output
        if not whole or (logprobs and len(logprobs) != len(output)):
            branch = None  # some servers give only half of it
            continue
        if branch is not None and goes_on:
            _extend(branch, new)
        else:
            branch = Branch(array("i"), array("B"), array("f"), array("i"), len(whole), [])
            made.append(branch)
            _extend(branch, whole)
        start = len(branch.token_ids)
        branch.token_ids += output
        branch.loss_mask += array("B", b"\x01" * len(output))
        branch.logprobs += logprobs or array("f", [float("nan")]) * len(output)
        branch.versions += _versions(tokens.versions, len(output), number)
        branch.answers.append(Span(call.call, start, len(branch.token_ids), -1 if call.message is None else call.message))
    return made


def _extend(branch: Branch, prompt: array[int]) -> None:
    """Append tokens that the model did not sample."""
    branch.token_ids += prompt
    branch.loss_mask += array("B", bytes(len(prompt)))
    branch.logprobs += array("f", bytes(4 * len(prompt)))
    branch.versions += array("i", [-1]) * len(prompt)


def _versions(runs: list[tuple[int, int]], length: int, number: int) -> array[int]:
    if not runs:
        return array("i", [-1]) * length
    versions = array("i")
    ends = [first for first, _ in runs[1:]] + [length]
    for (first, version), end in zip(runs, ends, strict=True):
        if first != len(versions) or not first <= end <= length or not -1 <= version < 2**31:
            raise DataError(f"calls[{number}].tokens: versions are no ascending runs from 0 on; the record is damaged")
        versions += array("i", [version]) * (end - first)
    return versions


def _array(code: str, data: bytes, number: int) -> array[Any]:
    """Unpack little-endian int32 or float32."""
    if len(data) % 4:
        raise DataError(f"calls[{number}].tokens: an array's bytes are no multiple of 4; the record is damaged")
    values = array(code)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
