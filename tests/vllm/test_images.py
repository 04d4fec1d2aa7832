"""Images before a real engine: what the model sees of them, exact ids over turns, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("PIL")

from gymq_workers.agent.record import call_record
from gymq_workers.model.tokens.chat_template import ChatTemplate
from gymq_workers.model.tokens.token_log import TokenLog
from PIL import Image

from gymq.api.backend import Request
from gymq.errors import CallError
from gymq.wire.calls import Generated, Reply
from gymq.wire.message import Conversation, Message, encode_message
from gymq.wire.record import encode_call
from gymq.wire.recorded_tokens import past
from gymq.wire.token_branches import Branch, branches
from tests.vllm.asking import floats, ints, request, said, version_at
from tests.vllm.tiny import TEMPLATE, VOCABULARY
from tests.vllm.vision import IMAGE, MARKS, PATCHES

pytestmark = [pytest.mark.heavy, pytest.mark.asyncio(loop_scope="module")]

MODEL = "vision"
ENGINE = {"limit_mm_per_prompt": {"image": 3}}

#: More than a block of the prefix cache.
LONG = "Tell me of " + ", ".join(f"thing number {i}" for i in range(60))

#: What a call samples: never a placeholder, which transformers would count as an image; the logprobs are the model's own.
GREEDY = {
    "temperature": 0,
    "max_tokens": 12,
    "ignore_eos": True,
    "logit_bias": {str(VOCABULARY + MARKS.index(IMAGE)): -100},
}


def picture(color: str, width: int = 40, height: int = 40) -> str:
    """A data: URL."""
    image = Image.new("RGB", (width, height), color)
    image.putpixel((3, 5), (255, 255, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def seen(url: str, text: str = "What is it?") -> list[dict[str, Any]]:
    """Content of an image and a text."""
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]


class Talk:
    """One rollout: its messages, and the records of its calls."""

    count = 0

    def __init__(self, backend: Any) -> None:
        Talk.count += 1
        self.backend, self.rollout = backend, f"talk.{Talk.count}.0"
        self.messages: list[Message] = []
        self.records: list[bytes] = []
        self.answers: list[Generated] = []

    async def say(self, role: str, content: Any, **sampling: Any) -> Generated:
        """Say something, and let the model answer."""
        self.messages.append(Message(role, content, tool_call_id="c" if role == "tool" else None))

        async def history() -> Any:
            return past(self.records, 1000)

        turns = [encode_message(message) for message in self.messages]
        body = msgspec.json.encode(GREEDY | sampling)
        answer = await self.backend.generate(Request(self.rollout, "e", Conversation(turns), body, history=history))
        step, index = len(self.records) + 1, len(self.messages)
        self.records.append(
            encode_call(call_record("generate", step, 0.0, Reply(0, 1.0, 2.0, "w"), answer=answer, message=index))
        )
        self.messages.append(said(answer))
        self.answers.append(answer)
        return answer

    def branches(self) -> list[Branch]:
        return branches({"calls": [msgspec.json.decode(record) for record in self.records]})


class Scorer:
    """The logprobs that transformers gives to ids and images, as a trainer would have them."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, Idefics3ForConditionalGeneration

        self._model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype="float32").eval()
        self._images = AutoProcessor.from_pretrained(folder).image_processor

    def score(self, ids: list[int], urls: list[str]) -> list[float]:
        """The logprob of each id but the first."""
        import torch

        opened = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
        pixels = self._images([opened], return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            logits = self._model(torch.tensor([ids]), **pixels).logits[0].log_softmax(-1)
        return [float(logits[i, one]) for i, one in enumerate(ids[1:])]


@pytest.fixture(scope="module")
def scorer(vision: Path) -> Scorer:
    return Scorer(vision)


def worst(scorer: Scorer, branch: Branch, urls: list[str]) -> float:
    """The largest difference between recorded logprobs and a trainer's."""
    scored = scorer.score(branch.token_ids.tolist(), urls)
    pairs = zip(scored, branch.logprobs[1:], branch.loss_mask[1:], strict=True)
    return max(abs(one - other) for one, other, sampled in pairs if sampled)


async def refused(backend: Any, *contents: Any) -> str:
    with pytest.raises(CallError) as caught:
        await backend.generate(request(*(Message("user", content) for content in contents), **GREEDY))
    assert caught.value.fault.kind == "model"
    assert "\n" not in caught.value.fault.message and len(caught.value.fault.message) < 300
    return caught.value.fault.message


async def test_what_an_image_shows_is_what_the_answer_depends_on(backend: Any) -> None:
    red, blue, again = [
        await backend.generate(request(Message("user", seen(picture(color))), **GREEDY)) for color in ("red", "blue", "red")
    ]
    assert ints(red.tokens.prompt) == ints(blue.tokens.prompt)
    assert ints(red.tokens.output) == ints(again.tokens.output)
    assert floats(red.tokens.logprobs) == pytest.approx(floats(again.tokens.logprobs), abs=1e-4)
    assert floats(red.tokens.logprobs) != pytest.approx(floats(blue.tokens.logprobs), abs=1e-2)


async def test_the_ids_are_those_that_the_model_saw_and_a_trainer_scores_them_alike(backend: Any, scorer: Scorer) -> None:
    urls = [picture("red"), picture("blue", 64, 20), picture("green", 20, 20)]
    talk = Talk(backend)
    for url in urls:
        await talk.say("user", seen(url))
    (branch,) = talk.branches()
    image = backend._engine.tokenizer.convert_tokens_to_ids(IMAGE)
    # A square is four parts and a whole, a strip two and a whole.
    assert branch.token_ids.count(image) == (5 + 3 + 5) * PATCHES
    assert talk.answers[0].usage.input_tokens == branch.prompt_len > 5 * PATCHES
    assert [place.end - place.start for answer in talk.answers for place in answer.tokens.images][::2] == [51, 51]
    assert worst(scorer, branch, urls) < 1e-3
    assert worst(scorer, branch, urls[::-1]) > 1e-1


async def test_a_turn_goes_on_from_the_ids_of_the_one_before_and_finds_them_in_the_cache(backend: Any, scorer: Scorer) -> None:
    talk = Talk(backend)
    first = await talk.say("user", seen(picture("teal"), LONG))
    second = await talk.say("tool", seen(picture("pink", 64, 20), "That is what it looks like."))
    third = await talk.say("user", "And in words?")
    whole = 0
    for answer in talk.answers:
        assert answer.tokens.prompt_start == whole
        whole += len(ints(answer.tokens.prompt)) + len(ints(answer.tokens.output))
    # All full blocks but the last are found again, image and all.
    for before, answer in ((first, second), (second, third)):
        assert answer.usage.cached_tokens >= (before.usage.input_tokens + before.usage.output_tokens) // 128 * 128 > 0
    (branch,) = talk.branches()
    assert len(branch.token_ids) == whole and len(branch.answers) == 3
    assert worst(scorer, branch, [picture("teal"), picture("pink", 64, 20)]) < 1e-3


async def test_the_same_words_about_another_image_are_not_taken_from_the_cache(backend: Any, scorer: Scorer) -> None:
    for color in ("olive", "navy"):
        talk = Talk(backend)
        answer = await talk.say("user", seen(picture(color), LONG))
        assert answer.usage.cached_tokens == 0
        assert worst(scorer, talk.branches()[0], [picture(color)]) < 1e-3


async def test_a_placeholder_that_was_sampled_is_no_image(backend: Any) -> None:
    image = backend._engine.tokenizer.convert_tokens_to_ids(IMAGE)
    talk = Talk(backend)
    first = await talk.say("user", seen(picture("red")), logit_bias={str(image): 100}, max_tokens=3)
    assert ints(first.tokens.output) == [image] * 3
    second = await talk.say("user", seen(picture("blue", 64, 20)))
    assert second.tokens.prompt_start == len(ints(first.tokens.prompt)) + 3
    (place,) = second.tokens.images
    assert place.start > second.tokens.prompt_start
    assert len(talk.branches()) == 1


async def test_another_replica_goes_on_with_the_same_ids(backend: Any) -> None:
    talk = Talk(backend)
    await talk.say("user", seen(picture("red")))
    await talk.say("user", seen(picture("blue", 64, 20)))
    kept, backend._log = backend._log, TokenLog(backend._log._renderer, 1 << 20)
    try:
        third = await talk.say("user", "And now?")
        assert backend._log.counts == {"prompts": 1, "forks": 0, "reloads": 1}
    finally:
        backend._log = kept
    assert third.tokens.images == []
    assert len(talk.branches()) == 1


async def test_a_conversation_whose_image_was_changed_forks_where_it_stands(backend: Any, scorer: Scorer) -> None:
    talk = Talk(backend)
    await talk.say("user", seen(picture("red")))
    await talk.say("user", seen(picture("blue")))
    # Given another image of as many ids in the second message
    talk.messages[2].content = seen(picture("lime"))
    third = await talk.say("user", "And now?")
    # Then all up to it stays, and nothing behind it
    (place,) = third.tokens.images
    assert third.tokens.prompt_start == place.start
    one, two = talk.branches()
    assert [len(one.answers), len(two.answers)] == [2, 1]
    assert worst(scorer, one, [picture("red"), picture("blue")]) < 1e-3
    assert worst(scorer, two, [picture("red"), picture("lime")]) < 1e-3


async def test_what_is_no_image_ends_the_call_in_one_line(backend: Any) -> None:
    whole = picture("red")
    cut = base64.b64encode(base64.b64decode(whole.partition(",")[2])[:60]).decode()
    for url, words in {
        "https://example.com/cat.png": "messages[1]: an image is at 'https://example.com/cat.png', which is not opened",
        "file:///etc/passwd": "is not opened",
        "": "is not opened",
        "data:image/png,abc": "is not base64",
        "data:image/png;base64,a": "base64 is broken",
        "data:image/png;base64,": "an image cannot be read",
        "data:image/png;base64,aGVsbG8=": "an image cannot be read",
        f"data:image/png;base64,{cut}": "an image cannot be read",
    }.items():
        assert words in await refused(backend, "Hello", seen(url))
    for part in ({"type": "video_url", "video_url": {"url": whole}}, {"type": "input_audio", "input_audio": {"data": ""}}):
        assert f"part of type '{part['type']}'" in await refused(backend, [part, {"type": "text", "text": "?"}])
    assert (await backend.generate(request(Message("user", seen(whole)), **GREEDY))).usage.output_tokens == 12


async def test_more_images_than_the_engine_takes_end_the_call_in_one_line(backend: Any) -> None:
    line = await refused(backend, *[seen(picture("red"))] * 2, *[seen(picture("blue"))] * 2)
    assert "4 images" in line and "takes 3" in line and "limit_mm_per_prompt" in line


async def test_a_template_without_a_place_for_images_ends_the_call_in_one_line(backend: Any) -> None:
    given = {"chat_template": TEMPLATE}
    kept, backend._log = backend._log, TokenLog(ChatTemplate(backend._engine.tokenizer, given), 1 << 20)
    try:
        assert "no place for an image" in await refused(backend, seen(picture("red")))
    finally:
        backend._log = kept


async def test_a_placeholder_in_a_text_beside_images_ends_the_call_in_one_line(backend: Any) -> None:
    for content in (seen(picture("red"), f"What is in {IMAGE}?"), [{"type": "text", "text": IMAGE}, *seen(picture("red"))]):
        assert f"the text has the placeholder '{IMAGE}' where there is no image" in await refused(backend, content)


async def test_a_prompt_that_its_images_make_too_long_is_an_overflow(backend: Any) -> None:
    # Given a text that fits, but not with an image
    tokens = len(backend._engine.tokenizer.encode(" word" * 100)) / 100
    text = " word" * int(2010 / tokens)
    assert (await backend.generate(request(text, **GREEDY))).usage.input_tokens < 2048
    url = picture("gray")
    with pytest.raises(CallError) as caught:
        await backend.generate(request(Message("user", seen(url, text)), **GREEDY))
    assert caught.value.fault.kind == "context_overflow"
    # Then the image, which the engine never got, is no trouble later
    await backend.generate(request(Message("user", seen(url)), **GREEDY))


async def test_an_image_that_vllm_believes_to_be_in_the_engine_is_sent_again(backend: Any, scorer: Scorer) -> None:
    url = picture("maroon")
    pictures = await backend._images.read([Message("user", seen(url))])
    await pictures.expand(backend._engine.tokenizer.encode(IMAGE), 0)
    talk = Talk(backend)
    await talk.say("user", seen(url))
    assert worst(scorer, talk.branches()[0], [url]) < 1e-3


async def test_an_image_is_decoded_once(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    decode = backend._images._load
    monkeypatch.setattr(backend._images, "_load", lambda data: opened.append(len(data)) or decode(data))
    talk = Talk(backend)
    await talk.say("user", seen(picture("purple")))
    await talk.say("user", "And now?")
    assert len(opened) == 1


@pytest.mark.parametrize("mode", ["keep", "abort"])
async def test_new_weights_see_the_images_of_calls_in_flight_anew(
    backend: Any, vision: Path, vision2: Path, scorer: Scorer, mode: str
) -> None:
    urls = [picture("red"), picture("blue", 64, 20)]
    talk = Talk(backend)
    await talk.say("user", seen(urls[0]))
    asked = asyncio.create_task(talk.say("user", seen(urls[1]), max_tokens=400))
    try:
        while backend.load()["running"] < 1:
            await asyncio.sleep(0.01)
        await backend.update_weights(str(vision2), 1, mode)
        answer = await asked
    finally:
        await backend.update_weights(str(vision), 2, "wait")
    versions = [version_at(answer.tokens, i) for i in range(400)]
    assert versions[-1] == 1 and (versions[0] == 1 or mode == "keep")
    (branch,) = talk.branches()
    scored = Scorer(vision2).score(branch.token_ids.tolist(), urls)[-400:]
    pairs = zip(scored, floats(answer.tokens.logprobs), versions, strict=True)
    assert max(abs(one - other) for one, other, version in pairs if version == 1) < 1e-3
