"""The backend `replay`: answers found by the exact prompt, and told clearly where there are none."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest
from gymq_workers.model.replay_backend import ReplayBackend

from gymq.errors import CallError, UsageError
from gymq.wire.calls import Tokens
from gymq.wire.message import Function, Message, ToolCall, decode_message
from tests.support.model_server import ask

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def said(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


@pytest.fixture
async def recorded(tmp_path: Path):
    """Makes a started backend from recorded conversations, or from whole rows."""
    made: list[ReplayBackend] = []

    async def make(*rows) -> ReplayBackend:
        file = tmp_path / "rollouts.jsonl"
        lines = [
            row if isinstance(row, str) else json.dumps(row if isinstance(row, dict) else {"messages": row}) for row in rows
        ]
        file.write_text("".join(line + "\n" for line in lines))
        one = ReplayBackend(str(file), {})
        made.append(one)
        await one.start()
        return one

    yield make
    for one in made:
        await one.stop()


async def text(backend: ReplayBackend, request) -> str:
    return decode_message((await backend.generate(request)).message).text


async def miss(backend: ReplayBackend, request) -> str:
    with pytest.raises(CallError) as caught:
        await backend.generate(request)
    assert caught.value.fault.kind == "replay_miss"
    assert "\n" not in caught.value.fault.message
    return caught.value.fault.message


async def test_each_answer_is_found_by_its_prompt(recorded):
    tool = {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "f"}
    one = await recorded(
        [user("Hi"), {"role": "assistant", "tool_calls": [CALL]}, tool, said("It is 2.")], [user("Bye"), said("!")]
    )
    first = await one.generate(ask("Hi"))
    message = decode_message(first.message)
    assert message.tool_calls == [ToolCall("c1", Function("f", '{"a": 1}'))]
    assert first.finish == "tool_calls"
    second = await one.generate(ask("Hi", message, Message("tool", "2", tool_call_id="c1", name="f")))
    assert (decode_message(second.message).text, second.finish) == ("It is 2.", "stop")
    assert await text(one, ask("Bye")) == "!"


async def test_reasoning_is_replayed_but_is_no_part_of_the_prompt(recorded):
    one = await recorded([user("Hi"), said("Hello", reasoning="Greet."), user("Bye"), said("!")])
    hello = decode_message((await one.generate(ask("Hi"))).message)
    assert hello.reasoning == "Greet."
    assert await text(one, ask("Hi", hello, "Bye")) == "!"
    assert await text(one, ask("Hi", Message("assistant", "Hello"), "Bye")) == "!"


async def test_the_form_of_the_json_does_not_matter(recorded):
    one = await recorded(
        '{"messages": [{"content": "Hi", "name": null, "role": "user"}, {"content":"\\u0048o","role":"assistant"}]}'
    )
    assert await text(one, ask("Hi")) == "Ho"


async def test_samples_get_the_recorded_answers_in_order(recorded):
    one = await recorded(*[[user("Hi"), said(f"answer {i}")] for i in range(3)])
    got = [await text(one, ask("Hi", rollout=f"my.run.7.{sample}")) for sample in range(5)]
    assert got == ["answer 0", "answer 1", "answer 2", "answer 0", "answer 1"]


async def test_a_rollout_stays_with_the_recording_that_it_follows(recorded):
    one = await recorded(*[[user("Hi"), said("same"), user("On"), said(f"end {i}")] for i in range(3)])
    again = [await text(one, ask("Hi", Message("assistant", "same"), "On", rollout=f"r.0.{sample}")) for sample in range(3)]
    assert again == ["end 0", "end 1", "end 2"]
    mixed = [[user("Hi"), said("odd" if i % 2 else "even"), user("On"), said(f"end {i}")] for i in range(4)]
    two = await recorded(*mixed)
    assert await text(two, ask("Hi", Message("assistant", "odd"), "On", rollout="r.0.1")) == "end 1"
    assert await text(two, ask("Hi", Message("assistant", "odd"), "On", rollout="r.0.3")) == "end 3"


async def test_usage_finish_and_model_are_repeated(recorded):
    failed = {"kind": "generate", "fault": {"kind": "model_unavailable", "message": "no"}}
    calls = [{"kind": "open"}, failed, {"kind": "generate", "finish": "length", "input_tokens": 5, "output_tokens": 2}]
    opening = [user("1+1?"), said("2"), user("Hi")]
    one = await recorded({"messages": [*opening, said("The capi")], "calls": calls, "model": "openai:b", "model_name": "big"})
    answer = await one.generate(ask("1+1?", Message("assistant", "2"), "Hi"))
    assert (answer.finish, answer.usage.input_tokens, answer.usage.output_tokens, answer.model) == ("length", 5, 2, "big")


async def test_token_ids_are_replayed_and_of_a_prompt_what_is_new_to_the_rollout(recorded):
    def packed(*ids: int) -> str:
        return base64.b64encode(struct.pack(f"<{len(ids)}i", *ids)).decode()

    first = {"prompt_start": 0, "prompt": packed(1, 2), "output": packed(3), "logprobs": packed(7), "versions": [[0, 4]]}
    second = {"prompt_start": 3, "prompt": packed(4, 5), "output": packed(6, 7)}
    calls = [{"kind": "generate", "tokens": first}, {"kind": "tool"}, {"kind": "generate", "tokens": second}]
    one = await recorded({"messages": [user("Hi"), said("a"), user("On"), said("b")], "calls": calls})
    got = (await one.generate(ask("Hi"))).tokens
    assert got == Tokens(0, struct.pack("<2i", 1, 2), struct.pack("<i", 3), struct.pack("<i", 7), [(0, 4)])
    on = ("Hi", Message("assistant", "a"), "On")
    got = (await one.generate(ask(*on))).tokens
    assert got == Tokens(3, struct.pack("<2i", 4, 5), struct.pack("<2i", 6, 7))
    # To another rollout, all of it is new.
    got = (await one.generate(ask(*on, rollout="run.1.0"))).tokens
    assert got == Tokens(0, struct.pack("<5i", 1, 2, 3, 4, 5), struct.pack("<2i", 6, 7))


async def test_rollouts_of_nemo_gym_are_read(recorded):
    row = {
        "responses_create_params": {"input": [user("Hi")], "instructions": "Be brief."},
        "response": {
            "output": [
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "2"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is 2."}]},
            ]
        },
        "reward": 1.0,
    }
    one = await recorded(row)
    start = [Message("system", "Be brief."), "Hi"]
    call = decode_message((await one.generate(ask(*start))).message)
    assert await text(one, ask(*start, call, Message("tool", "2", tool_call_id="c1", name="f"))) == "It is 2."


async def test_a_pattern_names_several_files(tmp_path: Path):
    for name in ("one", "two"):
        rows = [[user(name), said(f"from {name}")], [user("Hi"), said("same"), user("On"), said(f"end {name}")]]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    backend = ReplayBackend(f"{tmp_path}/*.jsonl", {})
    await backend.start()
    assert [await text(backend, ask(name)) for name in ("one", "two")] == ["from one", "from two"]
    # Also where a prompt was answered in both: a rollout stays with its file.
    again = [await text(backend, ask("Hi", Message("assistant", "same"), "On", rollout=f"r.0.{n}")) for n in range(2)]
    assert again == ["end one", "end two"]
    await backend.stop()
    with pytest.raises(UsageError, match="is no file"):
        ReplayBackend(f"{tmp_path}/*.txt", {})


async def test_a_miss_shows_the_first_difference(recorded):
    one = await recorded([user("Hi"), said("Hello"), user("On"), said("end")])
    assert "rollouts.jsonl has no answer to this prompt of 1 messages" in await miss(one, ask("Ho"))
    assert 'no recording begins with {"role":"user","content":"Ho"}' in await miss(one, ask("Ho"))
    found = await miss(one, ask("Hi", Message("assistant", "Hello"), "Off"))
    assert 'message 3 is {"role":"user","content":"Off"}, recorded was {"role":"user","content":"On"}' in found
    found = await miss(one, ask("Hi", Message("assistant", "Hello"), "On", Message("assistant", "end"), "More"))
    assert "the recording ends before message 5" in found
    assert "no answer after message 2" in await miss(one, ask("Hi", Message("assistant", "Hello")))


async def test_a_miss_with_long_messages_stays_short(recorded):
    one = await recorded([user("Hi"), said("x" * 9999)])
    assert len(await miss(one, ask("Hi", Message("assistant", "y" * 9999)))) < 600


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", "{}", '{"messages": 3}', '{"messages":[{"content":"no role"}]}', '{"messages":[']
)
async def test_a_bad_file_is_one_line_that_names_the_line(recorded, line):
    with pytest.raises(UsageError) as caught:
        await recorded([user("Hi"), said("Ho")], line)
    assert "rollouts.jsonl:2 is no rollout" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_file_without_answers_is_refused(recorded):
    with pytest.raises(UsageError, match="holds no answers"):
        await recorded([user("Hi")])


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no file"):
        ReplayBackend(str(tmp_path / "none.jsonl"), {})
    with pytest.raises(UsageError, match="the file is missing"):
        ReplayBackend("", {})
