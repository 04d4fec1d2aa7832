"""Somebody else's package: environments and an agent that tests need. It is found on PYTHONPATH, by its entry points."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec
from gymq_workers.agent.tool_agent import ToolAgent
from gymq_workers.model.scripted_backend import ScriptedBackend

from gymq.api.agent import Agent, Generate
from gymq.api.environment import Ask, Environment, Opening, Response, Score, hook, tool
from gymq.errors import Unavailable
from gymq.wire.calls import Tokens
from gymq.wire.message import Function, Message, ToolCall


def note(path: str, line: str) -> None:
    """Append a line to a file that the test reads: what really happened, however often."""
    with open(path, "a") as file:
        file.write(line + "\n")


class SlowState(msgspec.Struct):
    """Counts the steps of one rollout."""

    steps: int = 0


class Slow(Environment):
    """Turns whose tools take a while; the row says how many turns, how long, and where to note each run of a tool."""

    name = "slow"
    State = SlowState

    async def open(self, task):
        return Opening(state=SlowState())

    @tool(timeout=120)
    async def step(self, number: int, task, state: SlowState) -> str:
        """Take a step."""
        note(task["journal"], f"{task.id} step {number} {os.getpid()}")
        await asyncio.sleep(task.get("seconds", 0))
        state.steps += 1
        return f"step {number} done, {state.steps} in all"

    @tool(read_only=True, timeout=120)
    async def look(self, number: int, task) -> str:
        """Look, beside others."""
        note(task["journal"], f"{task.id} look {number} {time.time()}")
        await asyncio.sleep(task.get("seconds", 0))
        return f"saw {number}"

    @tool(once=True, timeout=120)
    async def pay(self, task) -> str:
        """Pay, once."""
        note(task["journal"], f"{task.id} pay")
        await asyncio.sleep(task.get("seconds", 0))
        return "paid"

    def verify(self, task, state: SlowState):
        return Score(reward=float(state.steps), metrics={"steps": state.steps})

    async def policy(self, messages, task):
        await asyncio.sleep(task.get("latency", 0))
        turn = sum(message.role == "assistant" for message in messages)
        script = task["script"]
        if turn >= len(script):
            return Message(role="assistant", content="done")
        calls = [
            ToolCall(f"call_{turn}_{i}", Function(name, msgspec.json.encode(arguments).decode()))
            for i, (name, arguments) in enumerate(script[turn])
        ]
        return Message(role="assistant", tool_calls=calls)


class Deadly(Slow):
    """`Slow` with a tool that kills its process where the row says so, until a file says that it was mended."""

    name = "deadly"

    @tool(timeout=120)
    async def bite(self, number: int, task, state: SlowState) -> str:
        """Bite, and kill the process if the row's `deadly` is `tool`."""
        note(task["journal"], f"{task.id} bite {os.getpid()}")
        await asyncio.sleep(task.get("seconds", 0))
        kill(task, "tool")
        state.steps += 1
        return f"bitten {number}"


class Blocking(Environment):
    """A tool that never lets go of its worker's loop."""

    name = "blocking"

    @tool()
    async def spin(self) -> str:
        """Never end."""
        while True:
            pass

    def policy(self, messages):
        return Message(role="assistant", tool_calls=[ToolCall("call_0", Function("spin", "{}"))])


def crash() -> None:
    """Segmentation fault, here and now: a signal to oneself leaves time to go on."""
    ctypes.string_at(0)


def kill(task, where: str) -> None:
    """End the process as a crash does, if the row says so."""
    if task.get("deadly") == where and not os.path.exists(task["mended"]):
        crash()


class Lethal(ScriptedBackend):
    """Code plays the model, and kills the process where the row says so."""

    async def generate(self, request):
        note(request.task["journal"], f"{request.task.id} generate {os.getpid()}")
        await asyncio.sleep(0.05)
        kill(request.task, "backend")
        return await super().generate(request)


class Toy(ScriptedBackend):
    """Code plays a model that takes weights; its tokens say which version sampled them.

    A folder of weights holds `weights.json`: `journal` (where to note what happens), `seconds` (how long loading takes),
    `victims` (how many replicas cannot load it).
    """

    name = "toy"
    versioned = True
    TOKENS = 8

    def __init__(self, model, options):
        super().__init__(model, options | {"latency": None})
        self._pause = float(options.get("latency") or 0) / self.TOKENS
        self._thawed = asyncio.Event()
        self._thawed.set()
        self.going = 0

    async def generate(self, request):
        versions: list[tuple[int, int]] = []
        self.going += 1
        try:
            for i in range(self.TOKENS):
                # Uneven, so that conversations do not go in step.
                await asyncio.sleep(self._pause * random.uniform(0.5, 1.5))
                await self._thawed.wait()
                if not versions or versions[-1][1] != self.version:
                    versions.append((i, self.version))
        finally:
            self.going -= 1
        answer = await super().generate(request)
        ids, logprobs = range(self.TOKENS), [-1.0] * self.TOKENS
        packed = struct.pack(f"<{self.TOKENS}i", *ids), struct.pack(f"<{self.TOKENS}f", *logprobs)
        answer.tokens = Tokens(0, b"", *packed, versions)
        return answer

    async def update_weights(self, path, version, mode):
        told = json.loads((Path(path) / "weights.json").read_text())
        note(told["journal"], f"begin {os.getpid()} {version} {mode} {self.going} {time.time()}")
        self._thawed.clear()
        await asyncio.sleep(told.get("seconds", 0))
        for victim in range(told.get("victims", 0)):
            with suppress(FileExistsError):
                (Path(path) / f"victim{victim}").touch(exist_ok=False)
                raise RuntimeError("the weights are broken")
        self.version = version
        self._thawed.set()
        note(told["journal"], f"end {os.getpid()} {version} {mode} {self.going} {time.time()}")


class Assassin(ToolAgent):
    """An agent whose code kills its process after a message that says so."""

    def act(self, view):
        if view.messages[0].content == "kill":
            crash()
        return super().act(view)


class Hostile(Environment):
    """Tools that do what must not disturb anybody else."""

    name = "hostile"

    @tool(isolated=True, timeout=2)
    def spin(self) -> str:
        """Never end."""
        while True:
            pass

    @tool(isolated=True, timeout=10)
    def leave(self) -> str:
        """End the process."""
        os._exit(1)

    @tool(isolated=True, timeout=20)
    def hoard(self) -> str:
        """Take 4 GB."""
        return str(len(bytearray(4 << 30)))

    @tool(isolated=True, timeout=10)
    def pid(self) -> str:
        """Say which process this is."""
        return str(os.getpid())

    @tool(isolated=True, timeout=30)
    def nap(self) -> str:
        """Rest for two seconds."""
        time.sleep(2)
        return "rested"

    @tool(isolated=True, timeout=90)
    def noted(self, task) -> str:
        """Rest, and note it."""
        note(task["journal"], str(os.getpid()))
        time.sleep(task["seconds"])
        return "rested"

    @hook(isolated=True, timeout=2)
    def verify(self, task) -> float:
        while task.get("spin"):
            pass
        return 1.0

    def policy(self, messages, task):
        turn = sum(message.role == "assistant" for message in messages)
        calls = task["calls"]
        if turn >= len(calls):
            return Message(role="assistant", content="done")
        return Message(role="assistant", tool_calls=[ToolCall(f"call_{turn}", Function(calls[turn], "{}"))])


class Sticky(Environment):
    """Tools that hang where nobody can kill them."""

    name = "sticky"

    @tool(timeout=1)
    def hang(self) -> str:
        """Never end, in a thread."""
        threading.Event().wait()
        return "woke"

    @tool(timeout=60)
    async def stall(self, task) -> str:
        """Block the loop, the first time."""
        note(task["journal"], f"{os.getpid()}")
        if len(Path(task["journal"]).read_text().splitlines()) == 1:
            time.sleep(task["seconds"])
        return "went on"

    @tool(timeout=30)
    def rest(self) -> str:
        """Rest a moment."""
        time.sleep(0.05)
        return "rested"

    @tool(timeout=60)
    def give(self) -> str:
        """Give a gigabyte."""
        return "x" * (1 << 30)

    def verify(self) -> float:
        return 1.0

    policy = Hostile.policy


class Brief(Environment):
    """Tools that take most of their time limit."""

    name = "brief"

    @tool(timeout=1)
    async def nap(self, task) -> str:
        """Take half of it, on the loop."""
        note(task["journal"], "nap")
        await asyncio.sleep(0.5)
        return "up"

    @tool(isolated=True, timeout=1)
    def doze(self, task) -> str:
        """Take half of it, in an executor."""
        note(task["journal"], "doze")
        time.sleep(0.5)
        return "up"

    def verify(self) -> float:
        return 1.0

    policy = Hostile.policy


class PatientApart(Environment):
    """A tool and a verifier that hang in an executor the first time."""

    name = "patient_apart"

    @tool(isolated=True, timeout=60)
    def noted(self, task) -> str:
        """Hang, the first time."""
        self._wait(task["journal"], "noted")
        return "noted"

    @hook(isolated=True, timeout=60)
    def verify(self, task) -> float:
        self._wait(task["journal"], "verify")
        return 1.0

    def _wait(self, journal: str, what: str) -> None:
        note(journal, f"{what} {os.getpid()}")
        if Path(journal).read_text().count(what) == 1:
            time.sleep(50)

    policy = Hostile.policy


class Faulty(Environment):
    """Raises where the row says."""

    name = "faulty"

    def open(self, task):
        if task.get("raise") == "open":
            raise KeyError("secret")
        return Opening()

    @tool()
    def act(self, task) -> str:
        """Act."""
        if task.get("raise") == "tool":
            raise RuntimeError("the tool broke")
        return "acted"

    def respond(self, task):
        if task.get("raise") == "respond":
            raise RuntimeError("nothing to say")
        return Response(done=True)

    def verify(self, task):
        if task.get("raise") == "verify":
            raise ZeroDivisionError("no reward")
        return {"nan": float("nan"), "text": "good", "none": None}.get(task.get("raise"), 1.0)

    def close(self, task):
        if task.get("raise") == "close":
            raise RuntimeError("cannot close")

    def policy(self, messages, task):
        if task.get("raise") == "policy":
            raise RuntimeError("the model broke")
        if messages.last.role == "user":
            return Message(
                role="assistant",
                tool_calls=[ToolCall("call_0", Function(task.get("tool", "act"), task.get("arguments", "{}")))],
            )
        return Message(role="assistant", content="done")


class Guest(Environment):
    """Opens something that must be closed, and has tools that take as long as the row says, each of another kind."""

    name = "guest"

    def open(self, task):
        note(task["journal"], f"{task.id} open")
        return Opening()

    @tool(timeout=120)
    async def wait(self, task) -> str:
        """Wait on the loop."""
        note(task["journal"], f"{task.id} wait {os.getpid()}")
        await asyncio.sleep(task["seconds"])
        note(task["journal"], f"{task.id} waited")
        return "waited"

    @tool(timeout=120)
    def block(self, task) -> str:
        """Wait in a thread."""
        note(task["journal"], f"{task.id} block {os.getpid()}")
        time.sleep(task["seconds"])
        return "blocked"

    @tool(isolated=True, timeout=120)
    def rest(self, task) -> str:
        """Wait in a process that has a child, which ignores SIGTERM."""
        child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(120)"])
        note(task["journal"], f"{task.id} rest {os.getpid()} {child.pid}")
        time.sleep(task["seconds"])
        note(task["journal"], f"{task.id} rested")
        return "rested"

    def close(self, task):
        note(task["journal"], f"{task.id} close")

    def policy(self, messages, task):
        if messages.last.role == "user":
            return Message(role="assistant", tool_calls=[ToolCall("call_0", Function(task["tool"], "{}"))])
        return Message(role="assistant", content="done")


class Judged(Environment):
    """Needs services: a judge that it asks, or one that it calls by itself; what happens is noted in the row's journal."""

    name = "judged"

    async def policy(self, messages, task):
        asked = messages[0].role == "system"
        note(task["journal"], f"{task.id} {'ask' if asked else 'generate'}")
        if not asked:
            await asyncio.sleep(task.get("hang", 0))
            calls = [ToolCall(f"call_{i}", Function("fetch", "{}")) for i in range(task.get("fetches", 0))]
            return Message(role="assistant", tool_calls=calls if len(messages) == 1 else [], content="done")
        if os.path.exists(task.get("down", "")):
            raise Unavailable("the judge is down")
        return Message(role="assistant", content=task.get("verdict", "0.75"))

    @tool(read_only=True)
    async def fetch(self, task) -> str:
        """Fetch from a service."""
        note(task["journal"], f"{task.id} fetch")
        if "port" in task.data:
            await self.visit(task)
        return "fetched"

    async def visit(self, task):
        _, writer = await asyncio.open_connection("127.0.0.1", task["port"])
        writer.close()

    async def verify(self, task, messages, answer, note):
        if task.get("fault"):
            raise ZeroDivisionError("a defect")
        if "port" in task.data:
            await self.visit(task)
            return 0.75
        if answer is None or note["asked"] < task.get("questions", 1):
            asked = 0 if answer is None else note["asked"]
            prompt = [Message(role="system", content="Judge."), Message(role="user", content=messages.last.text)]
            return Ask(messages=prompt, note={"asked": asked + 1}, sampling={"temperature": 0.0}, model=task.get("judge"))
        return Score(reward=float(answer.text), metrics={"asked": note["asked"]})


class JudgedApart(Judged):
    """The same, and its verifier runs in an executor."""

    name = "judged_apart"

    @hook(isolated=True)
    async def verify(self, task, messages, answer, note):
        return await Judged.verify(self, task, messages, answer, note)


class Stubborn(Agent):
    """Always asks the model again: bounded by the run's turns."""

    name = "stubborn"

    def act(self, view):
        return Generate()
