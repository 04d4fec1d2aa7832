"""An environment that uses all there is, and notes in a file what really ran: for tests that kill processes."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator

import msgspec

from gymq import Ask
from gymq.api.environment import Environment, Opening, Response, Score, hook, tool
from gymq.wire.message import Function, Message, ToolCall

#: What the model does in each turn: parallel reads, a write, an isolated call, then it hears from the user, and writes again.
SCRIPT = (("look", "look"), ("step",), ("think",), (), ("step", "look"), ())


class ChaosState(msgspec.Struct):
    """Counts the steps of one rollout."""

    steps: int = 0


def note(task, what: str) -> None:
    """Append a line in one write: several processes write the file."""
    line = f"{task.id} {what} {os.getpid()} {time.time()}\n"
    file = os.open(task["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


class Climber:
    """A live object that must be where its rollout is."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.closed = False

    def check(self, state: ChaosState) -> None:
        """Fail if it is ahead of its rollout or behind it, or was closed."""
        if self.closed or self.steps != state.steps:
            raise RuntimeError(f"the session has taken {self.steps} steps, the rollout {state.steps}; closed: {self.closed}")

    def close(self) -> None:
        """End it."""
        self.closed = True


class Everything(Environment):
    """Parallel tools, tools that write, a live session, an isolated tool, an isolated verifier that asks a judge, a user who
    speaks, `open` and `close`."""

    name = "everything"
    State = ChaosState

    def session(self, task, state: ChaosState):
        note(task, "made")
        return Climber(state.steps)

    async def open(self, task, session: Climber):
        note(task, "open")
        return Opening(state=ChaosState())

    @tool(read_only=True)
    async def look(self, number: str, task, state: ChaosState, session: Climber) -> str:
        """Look, beside others."""
        note(task, f"look{number}")
        await asyncio.sleep(task["seconds"])
        session.check(state)
        return f"saw {number}"

    @tool()
    async def step(self, number: str, task, state: ChaosState, session: Climber) -> str:
        """Take a step."""
        note(task, f"step{number}")
        session.check(state)
        session.steps += 1
        await asyncio.sleep(task["seconds"])
        state.steps += 1
        session.check(state)
        return f"step {number}, {state.steps} in all"

    @tool(isolated=True)
    def think(self, number: str, task) -> str:
        """Think, in a process of its own."""
        note(task, f"think{number}")
        return f"thought {number}"

    def respond(self, messages, task, state: ChaosState, session: Climber):
        note(task, f"respond{len(messages)}")
        session.check(state)
        said = sum(message.role == "user" for message in messages)
        return Response(messages=[Message("user", "go on")]) if said == 1 else Response(done=True)

    @hook(isolated=True)
    def verify(self, task, state: ChaosState, answer):
        note(task, "verify" if answer is None else "verdict")
        if answer is None:
            return Ask([Message("system", f"{state.steps} steps. How many?")])
        return Score(reward=float(answer.text))

    def close(self, task):
        note(task, "close")

    async def policy(self, messages, task):
        await asyncio.sleep(task["seconds"])
        if messages[0].role == "system":  # it is the judge
            return Message(role="assistant", content=messages[0].text.partition(" ")[0])
        turn = sum(message.role == "assistant" for message in messages)
        names = SCRIPT[turn]
        if not names:
            return Message(role="assistant", content=f"turn {turn}")
        # The id of a call and its argument are its place: a turn that stood twice in a transcript would be seen.
        return Message(
            role="assistant",
            tool_calls=[
                ToolCall(f"c{turn}{i}", Function(n, json.dumps({"number": f"{turn}{i}"}))) for i, n in enumerate(names)
            ],
        )


def transcript() -> list[tuple[str, str]]:
    """What a rollout's messages must be: role, and the calls that it makes or answers."""
    found = [("user", "")]
    for turn, names in enumerate(SCRIPT):
        ids = [f"c{turn}{i}" for i in range(len(names))]
        found.append(("assistant", " ".join(ids)))
        found += [("tool", one) for one in ids]
        if not names and turn < len(SCRIPT) - 1:
            found.append(("user", ""))
    return found


def slowly(source: str, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """A producer that reads a JSON Lines file with a pause after each row; `pause:path`."""
    pause, _, path = source.partition(":")
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if number >= start:
                time.sleep(float(pause))
                yield f"{path}:{number + 1}", line
