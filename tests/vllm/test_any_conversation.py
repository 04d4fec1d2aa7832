"""Whatever a model samples, whatever it is told: prompts are exact, branches contiguous, each sampled token is trained once."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gymq.wire.token_branches import branches
from tests.support.tiers import examples
from tests.vllm.conversation import Talk

TOOLS = {"tools": [{"type": "function", "function": {"name": "look", "description": "Grüße <b>"}}]}

words = st.text(st.sampled_from("aZ .,\n\t{}\"'0é你\U0001f600"), max_size=12) | st.sampled_from(
    ["The weather in Paris", "None"]
)
spaces = st.sampled_from(["", " ", "\n", "  "])
#: How a model spaces its JSON: around colons and commas, and at both ends.
spacing = st.tuples(spaces, spaces, spaces)
arguments = st.dictionaries(words, st.none() | st.integers() | words | st.lists(st.booleans(), max_size=2), max_size=2)
#: Ids that no tokenizer would give: parts of characters, special tokens in the middle of a text.
odd = st.lists(st.integers(0, 480), max_size=4)

#: An answer: thought, text, calls with their spacing, odd ids and where, how it is cut in pieces, how it ends.
answers = st.fixed_dictionaries(
    {
        "thought": st.none() | words,
        "text": words,
        "calls": st.lists(st.tuples(arguments, spacing), max_size=2),
        "odd": odd,
        "where": st.integers(0, 100),
        "piece": st.integers(1, 6),
        "end": st.sampled_from(["end", "other end", "length", "nothing"]),
    }
)
#: A turn: what the model says, who says something then and what, and whether another replica answers next.
turns = st.tuples(answers, st.lists(st.tuples(st.sampled_from(["user", "tool", "system"]), words), max_size=3), st.booleans())


def call_text(given: dict, space: tuple[str, str, str], field: str) -> str:
    around, colon, end = space
    text = json.dumps(
        {"name": "look", field: given}, separators=("," + around, colon + ":" + around), ensure_ascii=bool(around)
    )
    return end + text + end


def sampled(talk: Talk, answer: dict, prompt: str) -> list[int]:
    """The ids of an answer, with its oddities."""
    text, calls = answer["text"], answer["calls"]
    if talk.name == "llama":
        text = call_text(*calls[0], "parameters").strip() if calls else text
    elif talk.name in ("chatml", "qwen3"):
        text += "\n".join(f"<tool_call>{call_text(*call, 'arguments')}</tool_call>" for call in calls)
    if answer["thought"] is not None and talk.name in ("qwen3", "r1"):
        begin = "" if prompt.endswith("<think>\n") else "<think>\n"
        text = f"{begin}{answer['thought']}\n</think>\n\n{text}"
    ids = talk.ids(text, answer["piece"])
    where = answer["where"] * len(ids) // 100
    ids[where:where] = answer["odd"]
    if answer["end"] == "length":
        return ids[: len(ids) // 2]
    if answer["end"] == "nothing":
        return ids
    return [*ids, talk.end if answer["end"] == "end" else talk.tokenizer.convert_tokens_to_ids("<|endoftext|>")]


def after(talk: Talk, output: list[int], since: int) -> str:
    """What stands behind an answer in the next prompt, written without the template."""
    said = [talk.message(index) for index in range(since, len(talk.turns))]
    ended = bool(output) and output[-1] in talk.renderer.ends
    if talk.name == "llama":
        roles = [("ipython" if each.role == "tool" else each.role, each.text.strip()) for each in said]
        told = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in roles)
        return ("" if ended else "<|eot_id|>") + told + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    told, role = "", ""
    for each in said:
        if role == "tool" and each.role != "tool":
            told += "<|im_end|>\n"
        if each.role == "tool":
            told += ("" if role == "tool" else "<|im_start|>user") + f"\n<tool_response>\n{each.text}\n</tool_response>"
        else:
            told += f"<|im_start|>{each.role}\n{each.text}<|im_end|>\n"
        role = each.role
    told += "<|im_end|>\n" if role == "tool" else ""
    return ("\n" if ended else "<|im_end|>\n") + told + "<|im_start|>assistant\n"


async def play(name: str, conversation: list) -> Talk:
    """Roll a conversation out; each prompt is checked as it is made."""
    talk = Talk(name, TOOLS)
    talk.say("system", "You look.")
    talk.say("user", "Hi")
    since = 0
    for answer, told, moves in conversation:
        if moves:
            talk.move()
        prompt = await talk.log.prompt(talk.request())
        # Another replica comes to the same prompt.
        here, there = talk.log, Talk(name).log
        talk.log = there
        again = await talk.log.prompt(talk.request())
        assert (again.ids, again.start, again.forked) == (prompt.ids, prompt.start, prompt.forked)
        talk.log = here
        output = sampled(talk, answer, prompt.text)
        if talk.prompts:
            last = talk.outputs[max(talk.outputs)]
            known = talk.prompts[-1].ids.tolist() + last
            assert prompt.ids[: prompt.start].tolist() == known[: prompt.start]
            assert prompt.forked == (prompt.start < len(known))
            if not prompt.forked and name in ("chatml", "llama", "qwen3"):
                assert talk.text(prompt.ids[prompt.start :]) == after(talk, last, since)
        else:
            assert talk.text(prompt.ids) == prompt.text
        for turn in prompt.answers:
            assert prompt.ids[turn.start : turn.end].tolist() == talk.outputs[turn.index]
        if name != "plain":
            assert talk.text(prompt.ids).endswith(prompt.text[-20:])
        assert (await talk.answer(output)).ids == prompt.ids
        since = len(talk.turns)
        for role, text in told:
            talk.say(role, text, tool_call_id="c" if role == "tool" else None, name="look" if role == "tool" else None)
    return talk


def check_branches(talk: Talk) -> None:
    """Each call stands in one branch, behind exactly its prompt; what it sampled is trained there, and nowhere else."""
    found = branches(talk.record())
    spans = [(branch, span) for branch in found for span in branch.answers]
    assert [span.message for _, span in spans] == list(talk.outputs)
    assert len(found) == 1 + sum(prompt.forked for prompt in talk.prompts)
    for number, (branch, span) in enumerate(spans):
        assert branch.token_ids[: span.start] == talk.prompts[number].ids
        assert branch.token_ids[span.start : span.end].tolist() == talk.outputs[span.message]
        assert set(branch.versions[span.start : span.end]) <= {number}
    for branch in found:
        seen: list[int] = []
        inside = set()
        for span in branch.answers:
            # NeMo RL's law: what was seen is how the next prompt begins.
            prompt = branch.token_ids[: span.start].tolist()
            assert prompt[: len(seen)] == seen
            seen = branch.token_ids[: span.end].tolist()
            inside |= set(range(span.start, span.end))
        assert branch.loss_mask.tolist() == [index in inside for index in range(len(seen))]
        assert branch.logprobs.tolist() == [-1.0 if index in inside else 0.0 for index in range(len(seen))]
        # What was sampled, decoded and parsed again, gives the message.
        for span in branch.answers:
            message = talk.parse(span.message, branch.token_ids[span.start : span.end].tolist())
            assert message == talk.message(span.message)


def roll(name: str, conversation: list) -> Talk:
    talk = asyncio.run(play(name, conversation))
    check_branches(talk)
    return talk


many = settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(st.sampled_from(["chatml", "llama"]), st.lists(turns, min_size=1, max_size=5))
def test_a_template_that_only_appends_never_forks(name, conversation):
    assert not any(prompt.forked for prompt in roll(name, conversation).prompts)


@many
@given(st.lists(turns, min_size=1, max_size=6))
def test_reasoning_that_the_template_drops_is_a_fork(conversation):
    talk = roll("qwen3", conversation)
    indices = list(talk.outputs)
    for number in range(1, len(indices)):
        between = [talk.message(index) for index in range(indices[number - 1] + 1, indices[number])]
        answer = talk.message(indices[number - 1])
        asked = any(message.role == "user" for message in between)
        if (answer.reasoning or "").strip() and asked:
            assert talk.prompts[number].forked
        elif (answer.reasoning or "").strip("\n") and not asked and all(told for _, told, _ in conversation[:number]):
            # (An answer that nothing follows is the last for the next prompt, and not the last for the one after it.)
            assert not talk.prompts[number].forked


@many
@given(st.sampled_from(["r1", "plain"]), st.lists(turns, min_size=1, max_size=5))
def test_templates_that_rewrite_much_or_end_no_turn_keep_the_invariants_too(name, conversation):
    roll(name, conversation)
