"""The branches of a finished rollout, from the token ids of its calls."""

from __future__ import annotations

import base64
import math
import struct
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymq.errors import DataError
from gymq.wire.rollout import Rollout
from gymq.wire.token_branches import Branch, Span, branches
from tests.support.rollouts import finished


def packed(values, kind: str = "i") -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}{kind}", *values)).decode()


def call(number: int, start: int, prompt, output, logprobs=(), versions=(), **fields) -> dict:
    tokens = {
        "prompt_start": start, "prompt": packed(prompt), "output": packed(output), "logprobs": packed(logprobs, "f"),
        "versions": versions,
    }  # fmt: skip
    return {"call": f"{number}.0", "kind": "generate", "message": number, "tokens": tokens} | fields


def lists(branch: Branch) -> tuple:
    return (list(branch.token_ids), list(branch.loss_mask), list(branch.versions), branch.prompt_len, branch.answers)


def test_calls_that_go_on_from_each_other_are_one_branch():
    calls = [
        {"call": "1.0", "kind": "open"},
        call(2, 0, [1, 2], [3, 4], [-0.5, -1.0], [[0, 7]]),
        {"call": "3.0", "kind": "tool"},
        call(4, 4, [5], [6, 7, 8], [-2.0, -3.0, -4.0], [[0, 7], [1, 8]]),
    ]
    (branch,) = branches({"calls": calls})
    spans = [Span("2.0", 2, 4, 2), Span("4.0", 5, 8, 4)]
    assert lists(branch) == ([1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 1, 0, 1, 1, 1], [-1, -1, 7, 7, -1, 7, 8, 8], 2, spans)
    assert list(branch.logprobs) == [0, 0, -0.5, -1.0, 0, -2.0, -3.0, -4.0]
    assert repr(branch) == "<Branch: 8 tokens, 5 of them sampled, 2 of the prompt, 2 answers>"


def test_a_rewritten_history_is_a_branch_of_its_own_and_each_token_is_trained_once():
    calls = [call(1, 0, [1, 2], [3, 4]), call(2, 2, [4, 5], [6]), call(3, 5, [9], [])]
    first, second = branches({"calls": calls})
    assert lists(first) == ([1, 2, 3, 4], [0, 0, 1, 1], [-1] * 4, 2, [Span("1.0", 2, 4, 1)])
    # The 4 was sampled in the first branch, and is only prompt here.
    assert lists(second) == ([1, 2, 4, 5, 6, 9], [0, 0, 0, 0, 1, 0], [-1] * 6, 4, [Span("2.0", 4, 5, 2), Span("3.0", 6, 6, 3)])


def test_what_is_not_known_says_so():
    (branch,) = branches({"calls": [call(1, 0, [1], [2, 3])]})
    assert branch.logprobs[0] == 0 and all(map(math.isnan, branch.logprobs[1:]))
    assert list(branch.versions) == [-1, -1, -1]


def test_an_answer_without_ids_of_its_prompt_or_of_its_own_is_in_no_branch():
    assert branches({"calls": []}) == []
    assert branches({"calls": [call(1, 0, [], [2, 3]), call(2, 0, [], [2])]}) == []
    logprobs_only = call(2, 2, [3], [], [-1.0])
    first, second = branches({"calls": [call(1, 0, [1], [2]), logprobs_only, call(3, 3, [4], [5])]})
    # What follows it cannot stand behind what came before it.
    assert (list(first.token_ids), list(second.token_ids)) == ([1, 2], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    "bad",
    [
        call(1, 1, [1], [2]),
        call(1, 0, [1], [2]) | {"tokens": {"prompt": "AAA="}},
        call(1, 0, [1], [2], versions=[[1, 3]]),
        call(1, 0, [1], [2, 3], versions=[[0, 3], [3, 4]]),
        call(1, 0, [1], [2, 3], versions=[[0, 3], [0, -7]]),
        call(1, 0, [1], [2], versions=[[0, 2**40]]),
    ],
)
def test_a_damaged_record_is_refused(bad):
    with pytest.raises(DataError, match=r"^calls\[0\]\.tokens: .*damaged$"):
        branches({"calls": [bad]})


def test_a_rollout_has_its_branches_and_numpy_needs_no_copy():
    times = {"queued": 1.0, "started": 1.0, "finished": 2.0, "worker": "host:1"}
    data = msgspec.json.encode(finished("r.0.0", calls=[call(1, 0, [1, 2], [3], [-1.5], [[0, 2]], **times)]))
    rollout = Rollout("r.0.0", data, True, b"1-0")
    (branch,) = rollout.branches
    assert rollout.branches is rollout.branches
    kinds = [memoryview(each).format for each in (branch.token_ids, branch.loss_mask, branch.logprobs, branch.versions)]
    assert kinds == ["i", "B", "f", "i"] and all(len(each) == 3 for each in (branch.logprobs, branch.versions))


ids = st.lists(st.integers(0, 2**31 - 1), max_size=6)
turns = st.lists(st.tuples(st.booleans(), ids, ids, st.integers(0, 12)), min_size=1, max_size=8)


@given(turns)
def test_whatever_the_calls_branches_are_contiguous_and_train_each_token_once(turns):
    # Given calls whose prompts go on, or are cut somewhere
    calls, before, wholes = [], [], []
    for number, (fork, prompt, output, cut) in enumerate(turns, 1):
        start = min(cut, len(before)) if fork else len(before)
        new = prompt or [1]
        whole = before[:start] + new
        calls.append(call(number, start, new, output, [-float(number)] * len(output), [[0, number]]))
        before = whole + output
        wholes.append((whole, output))
    found = branches({"calls": calls})
    spans = [(branch, span) for branch in found for span in branch.answers]
    # Then each call stands in one branch, in order, with exactly its prompt before it
    assert [span.call for _, span in spans] == [f"{number}.0" for number in range(1, len(turns) + 1)]
    for (branch, span), (whole, output) in zip(spans, wholes, strict=True):
        assert list(branch.token_ids[: span.start]) == whole
        assert list(branch.token_ids[span.start : span.end]) == output
    for branch in found:
        sampled = {i for span in branch.answers for i in range(span.start, span.end)}
        assert branch.loss_mask == array("B", [i in sampled for i in range(len(branch.token_ids))])
        assert [bool(p) for p in branch.logprobs] == [v >= 0 for v in branch.versions] == [bool(m) for m in branch.loss_mask]
        assert branch.prompt_len == branch.answers[0].start
