"""One call of an environment, without any process or server."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from gymq_workers.invocation.invoke import invoke

from gymq import plugins
from gymq.api.environment import Ask, Environment, Opening, Response, Score, tool
from gymq.errors import CallError, ToolError, Unavailable
from gymq.wire.calls import Call, Opened, Responded, Scored, ToolResult
from gymq.wire.message import Conversation, Message, decode_message, encode_message
from gymq.wire.task import Task


class Memory(msgspec.Struct):
    seen: list[str] = []


class Lab(Environment):
    name = "lab"
    State = Memory

    def open(self, task):
        return Opening(state=Memory(seen=[task["word"]]), messages=[Message(role="user", content="hello")], tools=[])

    @tool()
    def note(self, word: str, state: Memory) -> int:
        """Note a word."""
        state.seen.append(word)
        return len(state.seen)

    @tool(read_only=True)
    async def look(self, state: Memory, messages) -> dict:
        """Look."""
        state.seen.append("must not stay")
        return {"last": messages.last.text, "thread": threading.current_thread().name}

    @tool()
    def thread(self) -> str:
        """Name its thread."""
        return threading.current_thread().name

    @tool()
    def picture(self) -> list:
        """Give parts."""
        return [{"type": "image_url", "image_url": {"url": "data:"}}]

    @tool()
    def refuse(self, state: Memory) -> str:
        """Refuse."""
        state.seen.append("must not stay")
        raise ToolError("not today")

    @tool()
    def thing(self) -> object:
        """Give what is no JSON."""
        return object()

    @tool()
    def eat(self) -> str:
        """Want too much."""
        raise MemoryError

    def respond(self, messages, state: Memory):
        state.seen.append("r")
        return Response(done=True) if messages.last.text == "bye" else f"you said {messages.last.text}"

    def verify(self, task):
        return VERDICTS[task["word"]]()

    def close(self, state: Memory):
        CLOSED.append(state.seen)


CLOSED: list = []

VERDICTS = {
    "float": lambda: 0.5,
    "int": lambda: 1,
    "bool": lambda: True,
    "none": lambda: None,
    "score": lambda: Score(reward=2, rewards={"a": 1}, metrics={"m": True}, reason="r"),
    "unavailable": lambda: Score(reason="judge is away"),
    "nan": lambda: float("nan"),
    "inf": lambda: Score(reward=float("inf")),
    "text": lambda: "1.0",
    "part": lambda: Score(reward=1.0, rewards={"a": "x"}),
    "raises": lambda: 1 / 0,
}


@pytest.fixture(autouse=True)
def lab(monkeypatch):
    monkeypatch.setattr(plugins, "environment", lambda name: Lab())


async def run(kind: str, name: str = "", arguments: str = "{}", *, word="float", text="hi", state=None, threads=None):
    call = Call("r", 1, 2, kind, "demo", "lab", 0, time.time(), name=name, arguments=arguments, state=state)
    task = Task("t", "lab", [], json.dumps({"word": word}).encode())
    return await invoke(call, task, Conversation([encode_message(Message(role="user", content=text))]), threads=threads)


async def result(*args, **kwargs) -> ToolResult:
    return msgspec.msgpack.decode(await run("tool", *args, **kwargs), type=ToolResult)


async def test_open_gives_state_messages_and_tools():
    opened = msgspec.msgpack.decode(await run("open", word="w"), type=Opened)
    assert msgspec.msgpack.decode(opened.state) == {"seen": ["w"]}
    assert decode_message(opened.messages[0]).text == "hello"
    assert opened.tools == b"[]"


async def test_open_gets_the_messages_of_the_task_for_the_conversation_has_not_begun(monkeypatch):
    class Greeter(Environment):
        def open(self, messages):
            return Opening(messages=[Message("system", f"{len(messages)} from {messages.last.text}")])

    monkeypatch.setattr(plugins, "environment", lambda name: Greeter())
    call = Call("r", 1, 0, "open", "demo", "greeter", 0, time.time())
    task = Task("t", "greeter", [encode_message(Message("user", "Ann"))])
    opened = msgspec.msgpack.decode(await invoke(call, task, Conversation([])), type=Opened)
    assert decode_message(opened.messages[0]).text == "1 from Ann"


async def test_a_state_that_cannot_be_stored_is_a_fault_that_names_the_part(monkeypatch):
    class Shelf(msgspec.Struct):
        books: dict[str, list[Any]] = {}

    class Library(Environment):
        State = Shelf

        def open(self):
            return Opening(state=Shelf({"a": [1], "b": [2, Shelf({"c": [object()]})]}))

    monkeypatch.setattr(plugins, "environment", lambda name: Library())
    with pytest.raises(CallError, match=r"the state cannot be stored: Shelf\.books\['b'\]\[1\]\.books\['c'\]\[0\]: .*object"):
        await invoke(Call("r", 1, 0, "open", "demo", "library", 0, time.time()), None, None)


async def test_a_tool_changes_the_state_and_other_results_than_text_are_json_text():
    found = await result("note", '{"word": "b"}', state=msgspec.msgpack.encode(Memory(["a"])))
    assert json.loads(found.content) == "2"
    assert msgspec.msgpack.decode(found.state) == {"seen": ["a", "b"]}


async def test_a_read_only_tool_changes_nothing():
    found = await result("look", state=msgspec.msgpack.encode(Memory()))
    assert json.loads(json.loads(found.content))["last"] == "hi"
    assert found.state is None


async def test_content_parts_stay_parts():
    assert json.loads((await result("picture")).content)[0]["type"] == "image_url"


async def test_functions_that_are_not_async_run_in_a_thread_or_right_here():
    here = threading.current_thread().name
    assert json.loads((await result("thread")).content) == here
    with ThreadPoolExecutor(1, "pool") as threads:
        assert json.loads((await result("thread", threads=threads)).content) == "pool_0"
        assert here in json.loads((await result("look", threads=threads)).content)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("fly", "{}", "Unknown tool 'fly'. Known tools: eat, look, note, picture, refuse, thing, thread."),
        ("note", "{}", "Invalid arguments for note: word: Field required"),
        ("note", "nonsense", "Invalid arguments for note: "),
        ("note", '{"word": "a", "state": 1}', "Invalid arguments for note: state"),
        ("refuse", "{}", "not today"),
    ],
)
async def test_what_is_the_models_fault_goes_back_to_the_model(name, arguments, says):
    found = await result(name, arguments)
    assert (found.error, found.state) == (True, None)
    assert json.loads(found.content).startswith(says)


async def test_respond_is_text_or_a_response():
    said = msgspec.msgpack.decode(await run("respond"), type=Responded)
    assert (decode_message(said.messages[0]).content, said.done) == ("you said hi", False)
    assert msgspec.msgpack.decode(said.state) == {"seen": ["r"]}
    assert msgspec.msgpack.decode(await run("respond", text="bye"), type=Responded).done


@pytest.mark.parametrize(
    ("word", "reward"), [("float", 0.5), ("int", 1.0), ("bool", 1.0), ("none", None), ("score", 2.0), ("unavailable", None)]
)
async def test_a_reward_is_a_number_or_unavailable(word, reward):
    scored = msgspec.msgpack.decode(await run("verify", word=word), type=Scored)
    assert scored.reward == reward
    assert scored.reason or reward is not None


@pytest.mark.parametrize("word", ["nan", "inf", "text", "part", "raises"])
async def test_a_verdict_that_is_no_number_is_the_verifiers_fault(word):
    with pytest.raises(CallError) as raised:
        await run("verify", word=word)
    assert raised.value.fault.kind == "verifier"


@pytest.mark.parametrize(("name", "kind"), [("thing", "environment"), ("eat", "memory")])
async def test_what_a_tool_raises_is_a_fault(name, kind):
    with pytest.raises(CallError) as raised:
        await result(name)
    assert raised.value.fault.kind == kind


async def test_an_error_names_its_place_also_where_no_file_is(monkeypatch):
    # Given a class whose code was compiled as a notebook's cell is: it names a file that does not exist
    names: dict[str, Any] = {"__name__": "__main__", "Environment": Environment}
    cell = "class Cell(Environment):\n    name = 'cell'\n    def verify(self):\n        return 1 / 0\n"
    exec(compile(cell, "/tmp/ipykernel_1/880288140.py", "exec"), names)
    monkeypatch.setattr(plugins, "environment", lambda name: names["Cell"]())
    with pytest.raises(CallError) as raised:
        await run("verify")
    assert raised.value.fault.kind == "verifier"
    assert raised.value.fault.message == "ZeroDivisionError: division by zero (verify, line 4)"


async def test_close_sees_the_state_and_answers_nothing():
    assert await run("close", state=msgspec.msgpack.encode(Memory(["x"]))) == b""
    assert CLOSED.pop() == ["x"]


async def test_a_state_that_does_not_fit_is_the_environments_fault():
    with pytest.raises(CallError) as raised:
        await result("note", '{"word": "b"}', state=msgspec.msgpack.encode({"seen": 3}))
    assert raised.value.fault.kind == "environment"


class Court(Environment):
    """Asks a judge, or whatever its row says."""

    name = "court"

    def verify(self, task, answer, note):
        kind = task["word"]
        if answer is not None:
            return Score(reward=float(answer.text), metrics={"asked": note["n"]})
        if kind == "away":
            raise RuntimeError("the judge") from ConnectionRefusedError()
        if kind == "told":
            raise Unavailable("the judge is down")
        return Ask(*WRONG.get(kind, ([Message("user", "good?")], {"n": 1}, {"temperature": 0})))

    def respond(self, answer):
        return Ask([Message("user", "and?")]) if answer is None else answer.text

    @tool()
    def fetch(self, answer: str) -> str:
        """Has an argument of its own by that name."""
        raise TimeoutError(answer)


WRONG = {
    "empty": ([],),
    "text": (["good?"],),
    "note": ([Message("user", "x")], object()),
    "sampling": ([Message("user", "x")], None, "hot"),
}


async def court(kind: str, word: str = "fine", answer: str | None = None, note: object = None, **more):
    call = Call("r", 1, 2, kind, "demo", "court", 0, time.time(), **more)
    if answer is not None:
        call.answer, call.note = encode_message(Message("assistant", answer)), msgspec.msgpack.encode(note)
    return await invoke(call, Task("t", "court", [], json.dumps({"word": word}).encode()), Conversation([]))


@pytest.fixture
def in_court(monkeypatch):
    monkeypatch.setattr(plugins, "environment", lambda name: Court())


async def test_a_verifier_asks_and_is_told_the_answer_and_its_note(in_court):
    ask = msgspec.msgpack.decode(await court("verify"), type=Scored).ask
    assert [decode_message(turn).content for turn in ask.messages] == ["good?"]
    assert (ask.sampling, ask.model) == (b'{"temperature":0}', "")
    scored = msgspec.msgpack.decode(await court("verify", answer="0.5", note={"n": 1}), type=Scored)
    assert (scored.reward, scored.metrics, scored.ask) == (0.5, {"asked": 1.0}, None)


async def test_an_environment_that_speaks_asks_too(in_court):
    assert msgspec.msgpack.decode(await court("respond"), type=Responded).ask is not None
    said = msgspec.msgpack.decode(await court("respond", answer="go on"), type=Responded)
    assert [decode_message(turn).content for turn in said.messages] == ["go on"]


@pytest.mark.parametrize("word", WRONG)
async def test_a_question_that_is_none_is_the_verifiers_fault(in_court, word):
    with pytest.raises(CallError) as raised:
        await court("verify", word)
    assert raised.value.fault.kind == "verifier"
    assert "\n" not in raised.value.fault.message


@pytest.mark.parametrize("word", ["away", "told"])
async def test_an_outage_is_told_from_a_defect(in_court, word):
    with pytest.raises(CallError) as raised:
        await court("verify", word)
    assert raised.value.fault.kind == "unavailable"


async def test_a_tools_own_time_out_is_an_outage_and_its_answer_is_the_models(in_court):
    assert Court.tools["fetch"].schema["function"]["parameters"]["required"] == ["answer"]
    with pytest.raises(CallError) as raised:
        await court("tool", name="fetch", arguments='{"answer":"x"}')
    assert raised.value.fault.kind == "unavailable"
