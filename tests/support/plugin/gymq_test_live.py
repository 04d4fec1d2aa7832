"""Rollouts that live somewhere: an environment with a session in its worker's process, and a model whose replicas keep
conversations."""

from __future__ import annotations

import asyncio
import json
import os
from hashlib import sha256

import msgspec
from gymq_workers.model.scripted_backend import ScriptedBackend

from gymq.api.environment import Environment, Opening, tool
from gymq.wire.message import Function, Message, ToolCall


def note(task, what: str) -> None:
    """Append a line in one write: several processes write the file."""
    file = os.open(task["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{task.id} {what} {os.getpid()}\n".encode())
    os.close(file)


class Simulator:
    """A walk whose next place follows from all steps so far: one step too many or too few, and it is somewhere else."""

    def __init__(self, task) -> None:
        self._task = task
        self.at = sha256(str(task["seed"]).encode()).hexdigest()[:12]
        self.closed = False

    def step(self, way: int) -> str:
        """Take a step."""
        assert not self.closed
        self.at = sha256(f"{self.at} {way}".encode()).hexdigest()[:12]
        return self.at

    def close(self) -> None:
        """End it."""
        assert not self.closed
        self.closed = True
        note(self._task, "closed")


class Steps(msgspec.Struct):
    """The steps so far: they say where the simulator is."""

    ways: list[int] = []


class Walk(Environment):
    """Steps of a simulator, with looks beside each other between them; the row says how many turns, and how long they take."""

    name = "walk"
    State = Steps
    sessions = 64

    def session(self, task, state: Steps):
        note(task, "made")
        simulator = Simulator(task)
        for way in state.ways:
            simulator.step(way)
        return simulator

    async def open(self, task, session: Simulator):
        return Opening(messages=[Message("user", f"You are at {session.at}.")])

    @tool()
    async def go(self, way: int, task, state: Steps, session: Simulator) -> str:
        """Take a step."""
        place = session.step(way)
        await asyncio.sleep(task["seconds"])
        state.ways.append(way)
        return place

    @tool(read_only=True)
    def look(self, number: int, session: Simulator) -> str:
        """Look where you are."""
        return session.at

    @tool()
    def rest(self) -> str:
        """Do nothing, which anybody can."""
        return "rested"

    def verify(self, task, messages, session: Simulator) -> float:
        note(task, "verify")
        seen = [message.text for message in messages if message.role == "tool"]
        fresh, expected = Simulator(task), []
        for turn in range(task["turns"]):
            for name, arguments in script(turn):
                expected.append(fresh.step(arguments["way"]) if name == "go" else "rested" if name == "rest" else fresh.at)
        return float(seen == expected and session.at == fresh.at)

    async def policy(self, messages, task):
        await asyncio.sleep(task["latency"])
        turn = sum(message.role == "assistant" for message in messages)
        if turn >= task["turns"]:
            return Message(role="assistant", content="done")
        calls = [
            ToolCall(f"c{turn}{i}", Function(name, json.dumps(arguments))) for i, (name, arguments) in enumerate(script(turn))
        ]
        return Message(role="assistant", tool_calls=calls)


def script(turn: int) -> list[tuple[str, dict[str, int]]]:
    """The calls of a turn: steps, two looks, or nothing in particular."""
    return [[("go", {"way": turn})], [("look", {"number": 1}), ("look", {"number": 2})], [("rest", {}), ("go", {"way": 7})]][
        turn % 3
    ]


class Homely(ScriptedBackend):
    """Code plays the model, and conversations stay with the replica that answered last."""

    affine = True
