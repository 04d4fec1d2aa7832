"""Multiple choice: questions with lettered options, in the row format of NeMo Gym's `mcqa` server and scored as it does."""

from __future__ import annotations

import zlib

from gymq.api.environment import Environment, Score
from gymq.wire.message import Conversation, Message
from gymq.wire.task import Task

from .letter import MODES, Options, by_regex


class MultipleChoice(Environment):
    """Choose one of a question's options."""

    name = "multiple_choice"

    async def verify(self, task: Task, messages: Conversation) -> Score:
        """Give 1.0 if the letter that the model chose is the row's `expected_answer`, else 0.0.

        Args:
            task: the row.
            messages: the conversation; the assistant's messages after the task's own are read as one text.
        """
        mode = task.get("grading_mode") or "strict_single_letter_boxed"
        if mode not in MODES:
            return Score(reason=f"grading_mode {mode!r} is none of {', '.join(MODES)}")
        expected = (task.get("expected_answer") or "").strip().upper()
        if not expected:
            return Score(reason="the row has no expected_answer")
        answers = (messages[i] for i in range(len(task.encoded), len(messages)))
        text = "".join(message.text for message in answers if message.role == "assistant").strip()
        options = Options(task.get("options"))
        patterns = (task.get("template_metadata") or {}).get("output_regex")
        letter = by_regex(text, patterns, options) if patterns else None
        if letter is None:
            letter = MODES[mode](text, options)
        return Score(reward=float(letter == expected), metrics={"answered": float(letter is not None)})

    def policy(self, task: Task) -> Message:
        """Answer three questions in four rightly and the others with another option; a task's id decides which.

        Args:
            task: the row.
        """
        letters = [letter for row in task["options"] for letter in row]
        chosen = letters.index(task["expected_answer"])
        if zlib.crc32(task.id.encode()) % 4 == 0:
            chosen = (chosen + 1) % len(letters)
        return Message(role="assistant", content=f"The answer is \\boxed{{{letters[chosen]}}}.")
