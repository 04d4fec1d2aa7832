"""Reasoning tasks of the package reasoning-gym, which scores answers on any worker from the row alone."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

from gymq.api.environment import Environment, Score, hook
from gymq.errors import UsageError
from gymq.wire.message import Conversation, Message
from gymq.wire.task import Task

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.S)


class ReasoningGym(Environment):
    """Answer puzzles of more than a hundred generators. A row holds the whole entry: question, answer and metadata."""

    name = "reasoning_gym"

    # Some scorers hand the model's text to sympy, which evaluates it and may never come back.
    @hook(isolated=True, timeout=30)
    def verify(self, task: Task, messages: Conversation) -> Score:
        """Give the score of the entry's generator for the answer, from 0 to 1.

        Args:
            task: the row.
            messages: the conversation; its last assistant message holds the answer.

        Raises:
            UsageError: the package reasoning-gym is not installed.
        """
        entry = _entry(task)
        answer = messages.last_of("assistant")
        candidates, tagged = answers(answer.text if answer else "")
        score = scorer(entry["metadata"]["source_dataset"])
        return Score(reward=max(_score(score, text, entry) for text in candidates), metrics={"tagged": float(tagged)})

    def policy(self, task: Task) -> Message:
        """Answer two questions in three rightly and the others not at all; a task's id decides which.

        Args:
            task: the row.
        """
        if zlib.crc32(task.id.encode()) % 3 == 0:
            return Message(role="assistant", content="<answer>I do not know</answer>")
        return Message(role="assistant", content=f"<answer>{_entry(task)['answer']}</answer>")


def answers(text: str) -> tuple[list[str], bool]:
    """Return the candidates for the answer in a text, and whether they stood in `<answer>` tags.

    Args:
        text: the model's text. The last tags count; without tags the whole text and its last line do.
    """
    tagged = _ANSWER.findall(text)
    if tagged:
        return [tagged[-1].strip()], True
    text = text.strip()
    return [text, text.rpartition("\n")[2].strip()], False


@cache
def scorer(dataset: str) -> Callable[..., float]:
    """Return the scoring function of a generator, cached because making it may read word lists.

    Args:
        dataset: the generator's name.

    Raises:
        UsageError: the package reasoning-gym is not installed.
    """
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError:
        raise UsageError("environment reasoning_gym needs the package reasoning-gym: pip install 'gymq[data]'") from None
    return get_score_answer_fn(dataset)


def _entry(task: Task) -> dict[str, Any]:
    """Return the row's entry: the field `entry`, or NeMo Gym's fields of the row itself."""
    return task.get("entry") or {key: task[key] for key in ("question", "answer", "metadata")}


def _score(score: Callable[..., float], answer: str, entry: dict[str, Any]) -> float:
    try:
        return float(score(answer, entry))
    except Exception:
        # Some scorers raise at text that they cannot read: a wrong answer. A scorer that raises at the entry's own answer,
        # too, is itself at fault, or the row is: no reward.
        score(entry["answer"], entry)
        return 0.0
