"""Token ids and logprobs that the backend `openai` records."""

from __future__ import annotations

import struct
import time

import msgspec
import pytest
from gymq_workers.agent.record import call_record
from gymq_workers.model.openai import backend as openai_backend

from gymq.errors import CallError
from gymq.wire.calls import Reply, Tokens
from gymq.wire.message import Message, decode_message
from gymq.wire.record import encode_call
from gymq.wire.token_branches import branches
from tests.support.model_server import ask, servers


def ids(packed: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(packed) // 4}i", packed))


async def test_token_ids_and_logprobs_are_packed(backend):
    answer = await (await backend("mock-tokens")).generate(ask("Hi"))
    tokens = answer.tokens
    assert isinstance(tokens, Tokens)
    assert tokens.prompt_start == 0
    assert bytes(ids(tokens.prompt)) == b'"Hi"'
    assert bytes(ids(tokens.output)) == b'"You said: Hi"'
    assert struct.unpack("<14f", tokens.logprobs) == tuple(-byte / 8 for byte in b'"You said: Hi"')
    assert (answer.usage.cached_tokens, answer.usage.reasoning_tokens) == (3, 2)


async def test_the_next_call_stores_only_what_is_new_of_its_prompt(backend):
    one = await backend("mock-tokens")
    first = await one.generate(ask("Hi", rollout="run.1.0"))
    more = ask("Hi", decode_message(first.message), "And now?", rollout="run.1.0")
    second = await one.generate(more)
    assert second.tokens.prompt_start == len(b'"Hi""You said: Hi"')
    assert bytes(ids(second.tokens.prompt)) == b'"And now?"'
    # Another worker, or this one for another rollout, knows nothing of the first call.
    other = ask("Hi", decode_message(first.message), "And now?", rollout="run.1.1")
    assert bytes(ids((await one.generate(other)).tokens.prompt)) == b'"Hi""You said: Hi""And now?"'


async def test_answers_that_go_on_from_each_other_are_one_branch(backend):
    one = await backend("mock-tokens")
    said: list[Message | str] = ["Hi"]
    records = []
    for step in range(3):
        answer = await one.generate(ask(*said, rollout="run.4.0"))
        records.append(
            encode_call(call_record("generate", step, 0.0, Reply(0, 1.0, 2.0, "w"), answer=answer, message=len(said)))
        )
        said += [decode_message(answer.message), "And now?"]
    (branch,) = branches({"calls": [msgspec.json.decode(record) for record in records]})
    assert [span.message for span in branch.answers] == [1, 3, 5]
    texts = [bytes(branch.token_ids[span.start : span.end].tolist()) for span in branch.answers]
    assert texts == [b'"You said: Hi"', b'"You said: And now?"', b'"You said: And now?"']
    assert list(branch.logprobs) == [-id / 8 * m for id, m in zip(branch.token_ids, branch.loss_mask, strict=True)]


async def test_an_answer_that_another_worker_gave_is_not_built_upon(backend):
    one = await backend("mock-tokens")
    first = decode_message((await one.generate(ask("Hi", rollout="run.2.0"))).message)
    between = ask("Hi", first, "And now?", Message("assistant", "Not mine."), "Go on", rollout="run.2.0")
    assert (await one.generate(between)).tokens.prompt_start == 0
    one._prefixes._seen.clear()
    await one.generate(ask("Hi", rollout="run.2.0"))
    replaced = ask("Hi", Message("assistant", "You said: Hi", "the same text, but not mine"), "And now?", rollout="run.2.0")
    assert (await one.generate(replaced)).tokens.prompt_start == 0


async def test_what_another_worker_answered_is_read_from_the_rollouts_records(backend):
    here, there = await backend("mock-tokens"), await backend("mock-tokens")
    first = await there.generate(ask("Hi", rollout="run.4.0"))
    more = ask("Hi", decode_message(first.message), "And now?", rollout="run.4.0")
    more.history = recorded((1, first.tokens))
    second = await here.generate(more)
    assert second.tokens.prompt_start == len(b'"Hi""You said: Hi"')
    assert bytes(ids(second.tokens.prompt)) == b'"And now?"'
    # And back again: what the first one knows is not the newest.
    last = ask("Hi", decode_message(first.message), "And now?", decode_message(second.message), "Bye", rollout="run.4.0")
    last.history = recorded((1, first.tokens), (3, second.tokens))
    third = await there.generate(last)
    assert third.tokens.prompt_start == len(b'"Hi""You said: Hi""And now?""You said: And now?"')
    # Records of something else are no prefix.
    last.history = recorded((1, second.tokens))
    there._prefixes._seen.clear()
    assert (await there.generate(last)).tokens.prompt_start == 0


def recorded(*calls: tuple[int, Tokens]):
    async def history() -> list[tuple[int, Tokens]]:
        return list(calls)

    return history


async def test_only_so_many_rollouts_are_remembered(backend):
    one = await backend("mock-tokens")
    one._prefixes = openai_backend.Prefixes(2)
    for sample in range(5):
        await one.generate(ask("Hi", rollout=f"run.3.{sample}"))
    assert list(one._prefixes._seen) == ["run.3.3", "run.3.4"]


async def test_token_ids_may_stand_in_the_names_of_tokens(backend):
    tokens = (await (await backend("mock-named")).generate(ask("Hi"))).tokens
    assert bytes(ids(tokens.output)) == b'"You said: Hi"'
    assert tokens.prompt == b""


async def test_token_ids_that_do_not_match_their_logprobs_are_nonsense(backend):
    with pytest.raises(CallError, match="14 token ids but 13 logprobs") as caught:
        await (await backend("mock-mismatch")).generate(ask("Hi"))
    assert caught.value.fault.kind == "model"


async def test_a_backend_can_ask_for_token_ids_itself(backend):
    asking, silent = await backend(token_ids="true"), await backend()
    tokens = (await asking.generate(ask("Hi", body=b'{"temperature":0.5}'))).tokens
    assert (bytes(ids(tokens.output)), len(tokens.logprobs)) == (b'"You said: Hi"', 14 * 4)
    assert (await silent.generate(ask("Hi"))).tokens is None
    # What the row says of them counts.
    tokens = (await asking.generate(ask("Hi", body=b'{"logprobs":false}'))).tokens
    assert (bytes(ids(tokens.output)), tokens.logprobs) == (b'"You said: Hi"', b"")
    assert (await asking.generate(ask("Hi", body=b'{"return_token_ids":false,"logprobs":false}'))).tokens is None


async def test_what_is_new_of_a_prompt_is_known_whichever_server_answered(backend):
    with servers((), ()) as urls:
        one = await backend("mock-tokens", base_url=",".join(urls))
        before = await one.generate(ask("Hi", rollout="run.1.0"))
        left = one._pool._holders["run.1.0"]
        one._pool.failed(left, 0.0, time.monotonic() + 60)
        after = await one.generate(ask("Hi", decode_message(before.message), "And now?", rollout="run.1.0"))
    assert one._pool._holders["run.1.0"] == 1 - left
    assert after.tokens.prompt_start == len(b'"Hi""You said: Hi"')
