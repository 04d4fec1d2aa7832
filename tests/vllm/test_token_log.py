"""Prompts of exact token ids across turns: what goes on, what forks, and what is read again after a move."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("transformers")

from gymq_workers.model.tokens.chat_template import Body, ChatTemplate
from gymq_workers.model.tokens.token_log import TokenLog

from gymq.errors import CallError
from gymq.wire.message import Function, Message, ToolCall
from gymq.wire.token_branches import branches
from tests.vllm.conversation import Talk
from tests.vllm.templates import TEMPLATES, tokenizer

#: What each template writes after an answer, for a user's message and the next answer.
AFTER = {
    "chatml": "\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n",
    "llama": "<|start_header_id|>user<|end_header_id|>\n\nMore?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen3": "\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n",
    "plain": "\nuser: More?\nassistant: ",
}

ODD_CALL = '<tool_call>\n{"name":"look" ,  "arguments": {"city":"Paris","days":3 }}\n\n</tool_call>'


@pytest.mark.parametrize("name", sorted(AFTER))
@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_a_prompt_is_the_one_before_and_its_answer_and_what_is_new(name, piece):
    talk = Talk(name)
    talk.say("user", "Hi")
    output = [*talk.ids("The weather in Paris is sunny.", piece), talk.end]
    first = await talk.answer(output)
    assert (first.start, first.forked) == (0, False)
    assert talk.text(first.ids) == first.text
    talk.say("user", "More?")
    second = await talk.answer([talk.end])
    known = first.ids.tolist() + output
    assert (second.ids[: second.start].tolist(), second.start, second.forked) == (known, len(known), False)
    assert talk.text(second.ids[second.start :]) == AFTER[name]


@pytest.mark.parametrize("name", sorted(AFTER))
async def test_an_answer_without_its_end_gets_the_templates(name):
    talk = Talk(name)
    talk.say("user", "Hi")
    await talk.answer(talk.ids("The weath"))
    talk.say("user", "More?")
    second = await talk.answer([talk.end])
    end = "" if name == "plain" else TEMPLATES[name][2]
    assert (talk.text(second.ids[second.start :]), second.forked) == (end + AFTER[name], False)


@pytest.mark.parametrize("name", ["chatml", "llama", "qwen3"])
async def test_another_token_that_ends_a_turn_stands_for_the_templates(name):
    talk = Talk(name)
    talk.say("user", "Hi")
    await talk.answer([*talk.ids("Fine."), *talk.ids("<|endoftext|>")])
    talk.say("user", "More?")
    second = await talk.answer([talk.end])
    assert (talk.text(second.ids[second.start :]), second.forked) == (AFTER[name], False)


@pytest.mark.parametrize("piece", [1, 2, 1000])
@pytest.mark.parametrize("text", ["", "Let me see.\n"])
async def test_a_tool_call_that_is_spaced_otherwise_than_the_template_would_is_no_fork(piece, text):
    talk = Talk("chatml", {"tools": [{"type": "function", "function": {"name": "look"}}]})
    talk.say("user", "Hi")
    output = [*talk.ids(text + ODD_CALL * 2, piece), talk.end]
    first = await talk.answer(output)
    assert '{"function"' in first.text or '"function": {"name": "look"}' in first.text
    assert [call.function.arguments for call in talk.message(-1).tool_calls] == ['{"city": "Paris", "days": 3}'] * 2
    for result in ("sunny", "cloudy"):
        talk.say("tool", result, tool_call_id="c1.0", name="look")
    second = await talk.answer([talk.end])
    assert not second.forked and second.ids[: second.start].tolist() == first.ids.tolist() + output
    results = "".join(f"\n<tool_response>\n{result}\n</tool_response>" for result in ("sunny", "cloudy"))
    assert talk.text(second.ids[second.start :]) == f"\n<|im_start|>user{results}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("odd", [[200], [0, 1, 2], list(range(30))])
async def test_sampled_ids_that_are_no_text_stay_as_they_are(odd):
    talk = Talk("chatml")
    talk.say("user", "Hi")
    # A part of a character, special tokens in the middle, the end of a turn before the end.
    output = [*talk.ids("a€")[:-1], *odd, talk.end, *talk.ids("b"), talk.end]
    first = await talk.answer(output)
    talk.say("user", "More?")
    second = await talk.answer([talk.end])
    assert not second.forked
    assert second.ids[: second.start].tolist() == first.ids.tolist() + output
    assert talk.text(second.ids[second.start :]) == AFTER["chatml"]


async def test_reasoning_goes_on_through_tool_calls_and_forks_when_the_user_speaks():
    talk = Talk("qwen3")
    talk.say("user", "Hi")
    await talk.answer([*talk.ids("<think>\nI must look.\n</think>\n\n" + ODD_CALL, 2), talk.end])
    assert talk.message(-1).reasoning == "I must look."
    talk.say("tool", "sunny", tool_call_id="c1.0", name="look")
    second = await talk.answer([*talk.ids("<think>\nI know.\n</think>\n\nSunny."), talk.end])
    talk.say("user", "More?")
    third = await talk.answer([*talk.ids("<think>\nHm.\n</think>\n\nNo."), talk.end])
    assert [prompt.forked for prompt in talk.prompts] == [False, False, True]
    # The new branch has what the template wants, and shares with the old one what stands before the first thought.
    assert talk.text(third.ids) == third.text and "think" not in third.text
    assert (
        talk.text(third.ids[: third.start]) == talk.prompts[0].text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    one, two = branches(talk.record())
    assert len(one.token_ids) == len(second.ids) + len(talk.outputs[3])
    assert [[span.message for span in branch.answers] for branch in (one, two)] == [[1, 3], [5]]
    assert [sum(branch.loss_mask) for branch in (one, two)] == [
        len(talk.outputs[1]) + len(talk.outputs[3]), len(talk.outputs[5]),
    ]  # fmt: skip


async def test_an_answer_that_did_not_think_is_gone_on_from_where_the_template_repeats_it():
    talk = Talk("qwen3")
    talk.say("user", "Hi")
    # While it is the last, the template gives it an empty thought; behind it stands more, and it has none.
    await talk.answer([*talk.ids('<tool_call>\n{"name": "look", "arguments": {"days": 3}}\n</tool_call>', 2), talk.end])
    talk.say("tool", "sunny", tool_call_id="c1.0", name="look")
    second = await talk.answer([talk.end])
    assert not second.forked
    assert talk.text(second.ids[second.start :]).startswith("\n<|im_start|>user\n<tool_response>\nsunny")


async def test_an_empty_thought_that_the_prompt_began_is_a_fork_where_the_template_drops_it():
    talk = Talk("qwen3", {"chat_template_kwargs": {"enable_thinking": False}})
    talk.say("user", "Hi")
    first = await talk.answer([*talk.ids("Fine."), talk.end])
    assert first.text.endswith("<think>\n\n</think>\n\n")
    talk.say("user", "More?")
    second = await talk.answer([talk.end])
    assert second.forked and talk.text(second.ids) == second.text


async def test_thoughts_that_the_template_always_drops_fork_every_time():
    talk = Talk("r1")
    talk.say("user", "Hi")
    await talk.answer([*talk.ids("I think.</think>Fine."), talk.end])
    talk.say("user", "More?")
    second = await talk.answer([*talk.ids("So.</think>No."), talk.end])
    assert second.forked
    assert talk.text(second.ids) == "<|bos|><|User|>Hi<|Assistant|>Fine.<|eos|><|User|>More?<|Assistant|><think>\n"
    assert talk.text(second.ids[: second.start]) == "<|bos|><|User|>Hi<|Assistant|>"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("chatml", Message("assistant", "Fine.", reasoning="I think.")),
        ("llama", Message("assistant", "Let me look.", tool_calls=[ToolCall("c", Function("look", "{}"))])),
    ],
)
async def test_what_a_template_has_no_place_for_is_a_fork(name, answer):
    talk = Talk(name)
    talk.say("user", "Hi")
    first = await talk.answer([*talk.ids("I think. Let me look.", 2), talk.end], answer)
    talk.say("user", "More?")
    second = await talk.answer([talk.end])
    # The prompt stays as it was, and the answer is what the template makes of it.
    assert second.forked and second.answers == []
    assert talk.text(second.ids) == second.text
    assert second.ids[: len(first.ids)] == first.ids


async def test_an_answer_behind_results_of_tools_goes_on_where_it_keeps_its_text():
    talk = Talk("r1")
    talk.say("user", "Hi")
    talk.say("assistant", None, tool_calls=[ToolCall("c", Function("look", "{}"))])
    talk.say("tool", "sunny", tool_call_id="c", name="look")
    first = await talk.answer([*talk.ids("It is sunny.", 2), talk.end])
    assert first.text.endswith("<|outputs|><|output|>sunny<|/output|><|/outputs|>")
    talk.say("user", "More?")
    second = await talk.answer([talk.end])
    assert not second.forked
    assert talk.text(second.ids[second.start :]) == "<|User|>More?<|Assistant|><think>\n"


async def test_only_what_was_rewritten_is_tokenized_again():
    # Given three answers that were sampled otherwise than a tokenizer would have them
    talk = Talk("chatml")
    for text in ("one", "two", "three"):
        talk.say("user", text)
        await talk.answer([*talk.ids(f"The weather is {text}.", 1), talk.end])
    # When the third answer is taken back, and its question is put otherwise
    del talk.turns[5:]
    talk.turns[4] = talk.turns[4].replace(b"three", b"four")
    fourth = await talk.answer([talk.end])
    # Then the first two answers stand as they were sampled
    assert fourth.forked and [turn.index for turn in fourth.answers] == [1, 3]
    for turn in fourth.answers:
        assert fourth.ids[turn.start : turn.end].tolist() == talk.outputs[turn.index]
    assert talk.text(fourth.ids) == fourth.text
    assert talk.text(fourth.ids[: fourth.answers[-1].end]).endswith("is two.<|im_end|>")
    # Likewise where the answers after it stay.
    talk.say("user", "five")
    talk.turns[2] = talk.turns[2].replace(b"two", b"six")
    fifth = await talk.answer([talk.end])
    assert fifth.forked and [turn.index for turn in fifth.answers] == [1] and "six" in talk.text(fifth.ids)


async def test_another_replica_reads_what_was_sampled_and_goes_on():
    talk = Talk("qwen3")
    talk.say("user", "Hi")
    await talk.answer([*talk.ids("<think>\nOne.\n</think>\n\n" + ODD_CALL, 2), talk.end])
    talk.say("tool", "sunny")
    await talk.answer([*talk.ids("<think>\nTwo.\n</think>\n\n" + ODD_CALL, 3), talk.end])
    talk.say("tool", "sunny")
    assert talk.loads == 0
    here = await talk.log.prompt(talk.request())
    talk.move()
    there = await talk.log.prompt(talk.request())
    assert (there.ids, there.start, there.forked, talk.loads) == (here.ids, here.start, False, 1)
    assert here.start == len(talk.prompts[1].ids) + len(talk.outputs[3])


async def test_a_replica_that_was_passed_over_does_not_trust_what_it_knows():
    talk = Talk("chatml")
    talk.say("user", "Hi")
    await talk.answer([*talk.ids("one", 1), talk.end])
    here = talk.log
    # Given another replica that answered the second call
    talk.move()
    talk.say("user", "More?")
    await talk.answer([*talk.ids("two", 1), talk.end])
    talk.say("user", "And?")
    # When the first one is asked again
    prompt = await here.prompt(talk.request())
    assert not prompt.forked
    assert prompt.ids[: prompt.start].tolist() == talk.prompts[1].ids.tolist() + talk.outputs[3]


async def test_an_answer_of_ours_that_was_dropped_is_not_gone_on_from():
    # Given a call that two replicas have answered
    talk = Talk("chatml")
    talk.say("user", "Hi")
    late = TokenLog(talk.renderer, 1 << 20)
    request = talk.request()
    prompt = await late.prompt(request)
    await talk.answer([*talk.ids("one", 1), talk.end])
    # When the second answer came too late
    late.answered(request, prompt, [*talk.ids("two"), talk.end], b'{"role":"assistant","content":"two"}')
    talk.say("user", "More?")
    talk.log = late
    second = await talk.answer([talk.end])
    # Then the replica that gave it goes on from the first one
    assert not second.forked
    assert second.ids[: second.start].tolist() == talk.prompts[0].ids.tolist() + talk.outputs[1]


async def test_an_answer_that_nobody_sampled_is_text():
    talk = Talk("chatml")
    talk.say("user", "Hi")
    talk.say("assistant", "An example.")
    talk.say("user", "Now you.")
    first = await talk.answer([*talk.ids("one", 1), talk.end])
    assert (first.start, talk.text(first.ids)) == (0, first.text)
    talk.say("assistant", "Another example.")
    talk.say("user", "Go on.")
    second = await talk.answer([talk.end])
    assert not second.forked
    assert "Another example.<|im_end|>" in talk.text(second.ids[second.start :])


async def test_a_run_that_took_a_removed_ones_name_begins_anew():
    talk = Talk("chatml")
    talk.say("user", "Hi")
    await talk.answer([*talk.ids("one", 1), talk.end])
    talk.say("user", "More?")
    request = talk.request()
    request.born, request.history = 7.0, None
    assert (await talk.log.prompt(request)).start == 0


async def test_what_is_kept_is_bounded():
    talk = Talk("chatml")
    talk.log = TokenLog(talk.renderer, 20_000)
    talk.say("user", "x" * 2000)
    request = talk.request()
    for number in range(20):
        request.rollout = f"r.{number}.0"
        talk.log.answered(request, await talk.log.prompt(request), [talk.end], talk.turns[0])
    assert 1 <= len(talk.log._entries) < 10 and talk.log._entries.currsize <= 20_000


async def test_a_conversation_that_the_template_refuses_says_so():
    talk = Talk("llama")
    talk.say("user", "Hi")
    call = ToolCall("c", Function("look", "{}"))
    talk.say("assistant", None, tool_calls=[call, call])
    with pytest.raises(CallError, match="chat template refuses the conversation: one tool call at a time") as raised:
        await talk.log.prompt(talk.request())
    assert raised.value.fault.kind == "model"


@pytest.mark.parametrize("name", ["chatml", "llama", "qwen3", "r1"])
async def test_templates_get_calls_as_they_want_them_whatever_the_model_wrote(name):
    talk = Talk(name)
    talk.say("user", "Hi")
    for arguments in ('{"days": 3}', "no json", "[1]", ""):
        talk.turns = talk.turns[:1]
        talk.say("assistant", None, tool_calls=[ToolCall("c", Function("look", arguments))])
        talk.say("tool", "sunny", tool_call_id="c", name="look")
        text = talk.renderer.render(talk.request().messages, Body())
        assert "look" in text and "None" not in text and "<|Assistant|><|eos|>" not in text
        assert ('"days": 3' in text) == ("days" in arguments)


def test_text_is_tokenized_as_it_would_be_behind_the_token_before_it():
    from transformers import AddedToken

    # Given a tokenizer some of whose special tokens swallow the space behind them
    other = copy.deepcopy(tokenizer("chatml"))
    other.add_special_tokens({"additional_special_tokens": [AddedToken("<|end|>", rstrip=True, special=True)]})
    renderer = ChatTemplate(other)
    whole = other.encode("Hi<|end|>\n<|im_start|>", add_special_tokens=False)
    assert renderer.ids("\n<|im_start|>", "<|end|>") == whole[-1:]
    assert len(renderer.ids("\n<|im_start|>")) == 2


@pytest.mark.parametrize("content", ["message.content", "'' ~ message.content", "'' + message.content"])
def test_a_template_that_would_write_none_gets_empty_content(content):
    other = copy.deepcopy(tokenizer("chatml"))
    calls = "{% for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}"
    other.chat_template = "{% for message in messages %}{{ " + content + " }}" + calls + "{% endfor %}"
    call = ToolCall("c", Function("look", "{}"))
    assert ChatTemplate(other).render([Message("assistant", None, tool_calls=[call])], Body()) == "look"


@pytest.mark.parametrize(
    "text",
    [
        "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}",
        "{% for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}",
        "{{ message.content[0].text }}",
    ],
)
def test_a_template_that_only_knows_parts_gets_text_as_one(text):
    other = copy.deepcopy(tokenizer("chatml"))
    other.chat_template = "{% for message in messages %}" + text + "{% endfor %}"
    renderer = ChatTemplate(other)
    messages = [Message("system", "One, "), Message("user", "two, "), Message("assistant", ""), Message("tool", "three")]
    assert renderer.render(messages, Body()) == "One, two, three"


async def test_content_parts_are_text_unless_they_are_something_else():
    talk = Talk("chatml")
    talk.say("user", [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}])
    assert "<|im_start|>user\nHi you<|im_end|>" in (await talk.answer([talk.end])).text
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    plain = talk.renderer._plain(Message("user", parts))
    assert [part["type"] for part in plain["content"]] == ["text", "image"]
