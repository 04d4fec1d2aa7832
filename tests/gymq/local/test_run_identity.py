"""What two runs differ in, as a person is told."""

from __future__ import annotations

from gymq.local.run_identity import differences


def test_each_option_that_differs_is_told_with_what_it_was_and_is():
    was = {"environment": "a", "data": "1", "max_turns": 30, "judge": "", "sampling": {"top_p": 0.5, "n": 1}, "prompt": None}
    now = {"environment": "b", "data": "2", "max_turns": 9, "judge": "openai:j", "sampling": {"n": 1, "stop": ["x"]}}
    assert differences(was, now | {"prompt": {"user": "{q}"}, "later": 1}) == [
        "ENV: a → b",
        "--data: the rows are others",
        "--max-turns: 30 → 9",
        "--judge: not given → openai:j",
        '--sampling stop: not given → ["x"]',
        "--sampling top_p: 0.5 → not given",
        '--prompt-config: not given → {"user":"{q}"}',
    ]
    assert differences(was, was) == []
