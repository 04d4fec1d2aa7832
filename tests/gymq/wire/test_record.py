"""The record of a finished rollout: one struct, read by all, and what was recorded before is read after."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from gymq_sinks.jsonl import lines
from gymq_sinks.parquet import ParquetSink
from gymq_workers.model.replay_backend import ReplayBackend

from gymq.ops import summary
from gymq.wire.message import Message
from gymq.wire.record import CallRecord, RecordedTokens, RolloutRecord, encode_header, narrow
from gymq.wire.record_schema import rollout_schema
from gymq.wire.recorded_tokens import past
from gymq.wire.rollout import Rollout, rollout_of_entry
from gymq.wire.token_branches import Span, branches
from tests.support.model_server import ask

REPOSITORY = Path(__file__).parents[3]

#: A rollout as gymq wrote it when the schema was published. It stays as it is: whatever is added, it must be read.
RECORDED = Path(__file__).parent / "data" / "rollout-1.jsonl"
LINE = RECORDED.read_bytes().rstrip()


def test_a_line_recorded_before_is_read_and_written_again_as_it_was():
    record = Rollout("try-1.12.3", LINE, True, b"1-0").record
    assert (record.sample, record.usage.cached_tokens, record.versions, record.seq) == (3, 8, (3, 4), 37)
    assert bytes(record.task) == b'{"city":"Oslo","answer":{"sky":["cold"]}}'
    assert [call.kind for call in record.calls] == ["open", "generate", "generate", "tool", "generate", "ask", "verify"]
    assert record.calls[1].fault is not None and record.calls[1].fault.kind == "model_unavailable"
    assert record.messages[3] == Message("assistant", "It is cold in Oslo \u2744")
    assert msgspec.json.encode(record) == LINE


async def test_every_reader_reads_a_line_recorded_before(tmp_path):
    rollout = Rollout("try-1.12.3", LINE, True, b"1-0", 37)
    # A consumer
    assert rollout_of_entry([b"r", b"try-1.12.3", b"l", b"1", b"n", b"37", b"b", LINE], "try-1") == ("try-1", 12, 3)
    assert (rollout.reward, rollout.status, rollout.versions) == (0.5, "completed", (3, 4))
    assert rollout.messages == rollout.data["messages"] and len(rollout.messages) == 4
    # Token branches, from the struct and from JSON
    (branch,) = rollout.branches
    assert list(branch.token_ids) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert branch.answers == [Span("3.0", 3, 5, 1), Span("5.0", 7, 9, 3)]
    assert branches(json.loads(LINE)) == [branch]
    records = [json.dumps(call).encode().replace(b'"tokens": ', b'"tokens":') for call in rollout.data["calls"]]
    assert [(message, tokens.prompt_start) for message, tokens in past(records, 6)] == [(1, 0), (3, 5)]
    assert len(past(records, 4)) == 1
    # The summary
    report = summary.read(RECORDED)
    assert (report.total.rollouts, report.total.mean_reward, report.tokens["openai:judge"].input_tokens) == (1, 0.5, 40)
    # The sinks
    assert [rid for _, rid in lines(RECORDED)] == ["try-1.12.3"]
    sink = ParquetSink(tmp_path / "parts", "try-1")
    sink.open()
    sink.begin(False)
    sink.write([rollout])
    sink.commit()
    sink.close()
    (row,) = pq.read_table(tmp_path / "parts").to_pylist()
    assert (row["usage_reasoning_tokens"], row["error_kind"], row["versions"]) == (3, None, [3, 4])
    assert json.loads(row["calls"]) == rollout.data["calls"]
    # A replay of it
    backend = ReplayBackend(str(RECORDED), {})
    await backend.start()
    answer = await backend.generate(ask("How is it in Oslo?"))
    assert (answer.finish, answer.usage.input_tokens, answer.model) == ("tool_calls", 10, "smol")
    await backend.stop()


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("environments/*/data/smollm2.jsonl")), ids=lambda path: path.parts[-3])
async def test_the_recorded_rollouts_of_the_environments_are_read(path):
    backend = ReplayBackend(str(path), {})
    await backend.start()
    for line in path.read_bytes().splitlines():
        recorded = json.loads(line)
        first = next(index for index, message in enumerate(recorded["messages"]) if message["role"] == "assistant")
        opening = [msgspec.convert(message, Message) for message in recorded["messages"][:first]]
        assert (await backend.generate(ask(*opening))).model == recorded["model_name"]
        spans = [span for branch in branches(recorded) for span in branch.answers]
        assert len(spans) == recorded["turns"]
    await backend.stop()


def test_a_record_from_before_a_field_or_from_after_one_is_read():
    record = json.loads(LINE)
    old = {name: value for name, value in record.items() if name not in ("model_name", "versions", "seq", "calls")}
    read = msgspec.json.decode(json.dumps(old | {"new": 1}), type=RolloutRecord)
    assert (read.rollout_id, read.model_name, read.versions, read.calls) == ("try-1.12.3", "", None, [])


def test_the_header_is_the_record_up_to_what_the_commit_adds():
    record = msgspec.json.decode(LINE, type=RolloutRecord)
    header = encode_header(msgspec.structs.replace(record, seq=0, messages=[], calls=[]))
    assert LINE.startswith(header + b',"seq":37,"messages":[')


def test_a_narrow_struct_has_only_the_fields_that_are_asked_for():
    struct = narrow(RolloutRecord, "seq", messages=msgspec.Raw, calls=narrow(CallRecord, "kind"))
    assert struct.__struct_fields__ == ("seq", "messages", "calls")
    read = msgspec.json.decode(b'{"messages":[1],"calls":[{"kind":"open"}]}', type=struct)
    assert (read.seq, bytes(read.messages), read.calls[0].kind) == (0, b"[1]", "open")
    with pytest.raises(TypeError, match="RolloutRecord has no field new"):
        narrow(RolloutRecord, "new")


def test_the_json_schema_is_versioned_and_describes_every_field():
    schema = rollout_schema()
    assert schema["$id"] == "urn:gymq:rollout:1"
    rollout = schema["$defs"]["RolloutRecord"]
    assert rollout["required"] == list(rollout["properties"]) == list(json.loads(LINE))
    call = schema["$defs"]["CallRecord"]
    assert call["required"] == ["call", "kind", "queued", "started", "finished", "worker"]
    for name, definition in schema["$defs"].items():
        for field, what in definition.get("properties", {}).items():
            assert "description" in what or field == "type", f"{name}.{field} is not in the docstring's Args"


@pytest.mark.parametrize(
    ("struct", "heading"), [(RolloutRecord, "The record"), (CallRecord, "Calls"), (RecordedTokens, "Tokens")]
)
def test_the_docs_tell_every_field(struct, heading):
    text = (REPOSITORY / "docs" / "rollouts.md").read_text()
    section = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    documented = [name for cell in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`(\w+)`", cell)]
    assert documented == list(struct.__struct_fields__)
