"""The player: whole rollouts in this process, with the machine, the invocation and the backends of the workers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from gymq_workers.inline.answers import Person
from gymq_workers.inline.player import Player

from gymq import Ask, Environment, Function, Message, Opening, ToolCall, ToolError, Unavailable, plugins, tool
from gymq.errors import DataError, UsageError
from gymq.wire.record import RolloutRecord


class Moves(msgspec.Struct):
    moves: list[str] = []


class Maze:
    def __init__(self, moves: list[str]) -> None:
        self.moves = list(moves)
        self.closed = False

    def close(self) -> None:
        self.closed = True


class World(Environment):
    """An environment with all that the machine can meet; what happens is noted on the class."""

    name = "inline_world"
    State = Moves
    made: list[Maze] = []
    outages = 0

    def open(self, task) -> Opening:
        return Opening(state=Moves(list(task.get("moves", []))), messages=[Message("user", "Which way?")])

    def session(self, state: Moves) -> Maze:
        self.made.append(Maze(state.moves))
        return self.made[-1]

    @tool()
    def move(self, way: str, state: Moves, session: Maze) -> str:
        """Move."""
        if way == "up":
            raise ToolError("There is no up.")
        state.moves.append(way)
        session.moves.append(way)
        return " ".join(session.moves)

    @tool(isolated=True)
    async def slow(self) -> str:
        """Be slow."""
        await asyncio.sleep(30)
        return "never"

    @tool()
    def away(self) -> str:
        """Be away once."""
        World.outages += 1
        if World.outages == 1:
            raise Unavailable("the service is away")
        return "here"

    def verify(self, state: Moves, answer, note):
        if answer is None:
            return Ask([Message("user", "Was it good?")], note=len(state.moves))
        return float(note) if answer.text == "yes" else 0.0


def call(name: str, **arguments: Any) -> Message:
    encoded = msgspec.json.encode(arguments).decode()
    return Message("assistant", tool_calls=[ToolCall("c", Function(name, encoded))])


async def play(*answers: Any, row: dict | None = None, **options: Any) -> RolloutRecord:
    World.made, World.outages = [], 0
    return (await Player(World, answers, **options).play({"prompt": "go", **(row or {})})).record


async def test_a_scripted_model_plays_a_rollout_with_state_session_and_judge():
    record = await play(call("move", way="left"), call("move", way="up"), call("move", way="right"), "I am out.", "yes")
    assert (record.status, record.reward, record.turns, record.tool_calls) == ("completed", 2.0, 4, 3)
    said = [message.text for message in record.messages if message.role == "tool"]
    assert said == ["left", "There is no up.", "left right"]
    assert [(message.role, message.text) for message in record.messages[:2]] == [("user", "go"), ("user", "Which way?")]
    assert [one.kind for one in record.calls][:2] == ["open", "generate"]
    # The session is kept over the calls, and closed at the end
    assert World.made[-1].closed


async def test_a_function_is_asked_with_the_conversation_and_the_tools():
    seen: list[tuple[int, list[str]]] = []

    async def answer(messages, tools):
        seen.append((len(messages), sorted(tool["function"]["name"] for tool in tools)))
        return "yes"

    record = (await Player(World, answer).play({"prompt": "go"})).record
    assert record.reward == 0.0
    assert seen == [(2, ["away", "move", "slow"]), (1, [])]


async def test_waits_are_passed_over_and_an_outage_costs_a_try():
    record = await play(call("away"), "done", "no")
    assert (record.status, World.outages) == ("completed", 2)
    assert [one.fault.kind for one in record.calls if one.fault] == ["unavailable"]


async def test_limits_and_faults_end_a_rollout_as_in_a_run(monkeypatch):
    record = await play(*[call("move", way="left")] * 5, "yes", max_turns=2)
    assert (record.status, record.stop) == ("truncated", "max_turns")
    record = await play()
    assert (record.status, record.error.kind) == ("failed", "model")
    assert "the script has no more answers" in record.error.message
    record = await play({"role": "assistant"})
    assert "an answer is a dict; give text or a Message" in record.error.message


async def test_an_environments_policy_plays_by_default():
    rollout = await Player("weather").play({"prompt": "What is the weather in Oslo?"})
    assert rollout.reward == 1.0
    assert rollout.data["model"] == "scripted"
    assert rollout.messages[-1]["role"] == "assistant"


async def test_a_wrong_row_or_environment_is_refused():
    with pytest.raises(DataError, match="row: has neither prompt"):
        await Player("weather").play({"no": "prompt"})
    with pytest.raises(UsageError, match="unknown environment 'nosuch'"):
        Player("nosuch")


def test_a_person_types_answers_and_calls(monkeypatch, capsys):
    lines = iter(["/fly {}", '/move {"way": "left"}', "I am out.", "yes"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    rollout = asyncio.run(Player(World, Person()).play({"prompt": "go"}))
    assert rollout.reward == 1.0
    said = capsys.readouterr().out
    assert "user: Which way?" in said and "tool: left" in said and "there is no tool 'fly'" in said


def test_the_player_is_found_by_its_entry_point():
    assert plugins.load(plugins.PLAYERS, "inline") is Player
