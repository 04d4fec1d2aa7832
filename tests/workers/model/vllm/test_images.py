"""Images of conversations, as far as no engine is needed: what is read, and where they stand in exact prompts."""

from __future__ import annotations

import base64
from types import SimpleNamespace

import pytest
from gymq_workers.agent.record import call_record
from gymq_workers.model.tokens.chat_template import ChatTemplate
from gymq_workers.model.tokens.token_log import TokenLog
from gymq_workers.model.vllm.images import Images, Picture, Pictures, content, urls

from bench.mock_tokens import END, OK, decode
from gymq.errors import CallError
from gymq.wire.calls import Generated, Reply, Usage
from gymq.wire.message import Message, encode_message
from gymq.wire.record import RecordedTokens, encode_call
from gymq.wire.recorded_tokens import past
from tests.support.model_server import ask
from tests.support.tokenizer import IMAGE, Bytes

#: A PNG of one pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def text(words):
    return {"type": "text", "text": words}


def test_images_are_found_in_order_whoever_says_them():
    messages = [
        Message("system", "Look."),
        Message("user", [image("a"), text("and"), image("b")]),
        Message("assistant", None),
        Message("tool", [text("It shows"), {"type": "image_url", "image_url": "c"}]),
    ]
    assert urls(messages) == [(1, "a"), (1, "b"), (3, "c")]


def test_what_is_neither_text_nor_image_is_refused():
    with pytest.raises(CallError, match=r"messages\[1\] has a part of type 'input_audio'") as caught:
        urls([Message("user", "Hi"), Message("user", [text("Listen"), {"type": "input_audio", "input_audio": {}}])])
    assert caught.value.fault.kind == "model"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/" + "x" * 500, "is not opened; give it as a data: URL"),
        ("", "is not opened"),
        ("data:image/png", "is not base64"),
        ("data:image/png,%89PNG", "is not base64"),
        ("data:image/png;base64,iVBO!", "base64 is broken"),
        ("data:image/png;base64,iVB", "base64 is broken"),
        ("data:image/png;base64,ä", "base64 is broken"),
    ],
)
def test_an_image_is_in_a_data_url_or_its_fault_says_what_is_wrong(url, words):
    with pytest.raises(CallError, match=words) as caught:
        content(3, url)
    assert caught.value.fault.kind == "model"
    assert caught.value.fault.message.startswith("messages[3]: ") and len(caught.value.fault.message) < 250


def test_a_data_urls_bytes_are_what_it_holds():
    assert content(0, f"data:image/png;base64,{PNG}") == base64.b64decode(PNG)


async def test_a_model_that_takes_no_images_gets_none():
    images = Images(None, SimpleNamespace(supports_multimodal_inputs=False))
    assert await images.read([Message("user", "Hi")]) is None
    with pytest.raises(CallError, match=r"messages\[0\] has an image, and this model takes none") as caught:
        await images.read([Message("user", [image("data:image/png;base64,")])])
    assert caught.value.fault.kind == "model"


class Processor:
    """Makes of each image three ids that show which it is, and notes what it was asked."""

    def __init__(self):
        self.asked = []

    async def expand(self, ids, pictures):
        self.asked.append((decode(ids), [one.name for one in pictures]))
        expanded, spans, left = [], [], list(pictures)
        for id in ids:
            if id == IMAGE and left:
                spans.append((len(expanded), len(expanded) + 3))
                expanded += [1000 + ord(left.pop(0).name)] * 3
            else:
                expanded.append(id)
        assert not left
        return expanded, spans, [one.name for one in pictures]

    async def process(self, pictures):
        return (await self.expand([IMAGE] * len(pictures), pictures))[2]


class Talk:
    """One rollout; images are letters."""

    def __init__(self):
        self.processor = Processor()
        self.messages, self.records = [], []
        self.log = TokenLog(ChatTemplate(Bytes()), 1 << 20)

    async def say(self, said, output=(OK, END)):
        self.messages.append(Message("user", said))

        async def history():
            return past(self.records, 1000)

        request = ask(*self.messages)
        request.history = history
        found = urls(self.messages)
        pictures = Pictures(self.processor, [Picture(at, name, None) for at, name in found]) if found else None
        prompt = await self.log.prompt(request, pictures)
        message = encode_message(Message("assistant", "ok"))
        self.log.answered(request, prompt, list(output), message)
        answer = Generated(message, "stop", Usage(), prompt.tokens(list(output), [], []))
        number = len(self.records) + 1
        self.records.append(
            encode_call(
                call_record("generate", number, 0.0, Reply(0, 1.0, 2.0, "w"), answer=answer, message=len(self.messages))
            )
        )
        self.messages.append(Message("assistant", "ok"))
        return prompt


async def test_only_new_images_are_expanded_and_older_ones_stay_where_they_are():
    talk = Talk()
    first = await talk.say([image("a"), text("What is it?")])
    second = await talk.say([text("And"), image("b"), image("a")])
    third = await talk.say("Well?")
    assert [place.image for place in third.places] == ["a", "b", "a"]
    for place in third.places:
        assert third.ids[place.start : place.end].tolist() == [1000 + ord(place.image)] * 3
    assert second.ids[: second.start].tolist() == [*first.ids, OK, END]
    assert not third.forked
    # The processor never sees the ids of a turn before.
    assert talk.processor.asked == [
        ("user:\n\1What is it?\nassistant:\n", ["a"]),
        ("\1", ["a"]),
        ("\nuser:\nAnd\1\1\nassistant:\n", ["b", "a"]),
        ("\1\1\1", ["a", "b", "a"]),
    ]


async def test_a_placeholder_that_was_sampled_stays_one_id():
    talk = Talk()
    await talk.say([image("a")], [IMAGE, IMAGE, END])
    second = await talk.say([image("b")])
    assert second.ids.tolist().count(IMAGE) == 2 and not second.forked
    assert second.places[1].start > second.start


async def test_a_log_that_knows_nothing_reads_from_the_record_where_images_stand():
    talk = Talk()
    await talk.say([image("a")])
    await talk.say([image("b")])
    known = talk.log
    talk.log = TokenLog(ChatTemplate(Bytes()), 1 << 20)
    third = await talk.say([image("c")])
    assert not third.forked and [place.image for place in third.places] == ["a", "b", "c"]
    assert talk.log.counts["reloads"] == 1 and known.counts["reloads"] == 0


@pytest.mark.parametrize("known", [True, False])
async def test_an_image_that_was_changed_forks_the_prompt_where_it_stands(known):
    talk = Talk()
    await talk.say([image("a")])
    second = await talk.say([image("b")])
    talk.messages[2].content = [image("c")]
    if not known:
        talk.log = TokenLog(ChatTemplate(Bytes()), 1 << 20)
    third = await talk.say("Well?")
    assert third.forked and third.start == second.places[1].start
    assert [turn.index for turn in third.answers] == [1]


async def test_images_of_the_same_ids_are_told_apart():
    talk = Talk()
    talk.processor.expand = _alike(talk.processor.expand)
    await talk.say([image("a")])
    talk.messages[0].content = [image("b")]
    second = await talk.say("Well?")
    assert second.forked and second.start == second.places[0].start


def _alike(expand):
    async def one_for_all(ids, pictures):
        expanded, spans, made = await expand(ids, pictures)
        return [1000 if id > 1000 and id != END and id != OK else id for id in expanded], spans, made

    return one_for_all


async def test_a_record_says_where_images_stand_only_if_there_are_any():
    talk = Talk()
    prompt = await talk.say([text("Look: "), image("a")])
    (place,) = RecordedTokens.of(prompt.tokens([OK], [], [])).images
    assert prompt.ids[place.start : place.end].tolist() == [1000 + ord("a")] * 3
    await talk.say("Well?")
    assert [b'"images":' in record for record in talk.records] == [True, False]
