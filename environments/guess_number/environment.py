"""Guess the number: a task of many turns without tools. The environment answers each guess with "higher" or "lower"."""

from __future__ import annotations

import re

import msgspec

from gymq.api.environment import Environment, Opening, Response, Score
from gymq.wire.message import Conversation, Message
from gymq.wire.task import Task

#: A whole number that is no part of another. Python refuses to read thousands of digits, so long ones are no guess.
_NUMBER = re.compile(r"(?<![0-9])(?<![0-9]\.)-?[0-9]{1,18}(?!\.?[0-9])")


class GuessState(msgspec.Struct):
    """A game's state: the secret number, its range, the guesses allowed and made, and whether the secret was found."""

    secret: int
    low: int
    high: int
    limit: int
    guesses: int = 0
    found: bool = False


class GuessNumber(Environment):
    """Find a secret number in few guesses."""

    name = "guess_number"
    State = GuessState

    async def open(self, task: Task) -> Opening:
        """Choose the row's secret."""
        return Opening(state=GuessState(secret=task["secret"], low=task["low"], high=task["high"], limit=task["max_guesses"]))

    async def respond(self, messages: Conversation, state: GuessState) -> Response:
        """Answer a guess: the last number that the model wrote. A turn without a number costs a guess too.

        Args:
            messages: the conversation; its last message is the guess.
            state: the game, changed in place.
        """
        numbers = _NUMBER.findall(messages.last.text)
        guess = int(numbers[-1]) if numbers else None
        state.guesses += 1
        state.found = guess == state.secret
        if state.found:
            text = "correct"
        elif guess is None:
            text = f"Please guess a whole number from {state.low} to {state.high}."
        else:
            text = "higher" if guess < state.secret else "lower"
        return Response(messages=[Message(role="user", content=text)], done=state.found or state.guesses >= state.limit)

    async def verify(self, state: GuessState) -> Score:
        """Give 1 for the secret found, less a share of 1 / limit for each guess but the first; 0 for a secret not found."""
        metrics = {"guesses": float(state.guesses)}
        if not state.found:
            return Score(reward=0.0, rewards={"found": 0.0, "guesses": 0.0}, metrics=metrics)
        cost = (state.guesses - 1) / state.limit
        return Score(reward=1.0 - cost, rewards={"found": 1.0, "guesses": -cost}, metrics=metrics)

    def policy(self, messages: Conversation, task: Task) -> Message:
        """Guess the middle of the remaining range.

        Args:
            messages: the conversation.
            task: the row, for its range.
        """
        low, high = task["low"], task["high"]
        for i in range(len(task.encoded), len(messages)):
            if messages[i].role == "user":
                middle = (low + high) // 2
                low, high = (middle + 1, high) if messages[i].text == "higher" else (low, middle - 1)
        return Message(role="assistant", content=f"My guess is {(low + high) // 2}.")
