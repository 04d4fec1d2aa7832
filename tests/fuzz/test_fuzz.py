# ruff: noqa: E501
"""Valid rows, files and mail, mutated at random for some seconds: nothing crashes, hangs, or fills the memory.

GYMQ_FUZZ_SECONDS is how long each test goes on (3), GYMQ_FUZZ_SEED makes it the same again.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from gymq_workers.agent.state import NewerSchema, State, decode_state, encode_state
from gymq_workers.agent.worker import AgentWorker
from gymq_workers.resource.worker import ResourceWorker

from gymq import plugins
from gymq.errors import UNREADABLE, DataError, GymqError
from gymq.ingest.row_parser import parse_row
from gymq.ingest.source import rows
from gymq.runtime.mailbox import Mail
from gymq.wire.calls import Call, Reply, RequestParameters, decode_call, decode_parameters, decode_reply, encode
from gymq.wire.message import Message, decode_message, encode_message
from gymq.wire.task import Task, decode_task, encode_task
from tests.support.bad_rows import ROWS
from tests.support.rollouts import linked
from tests.support.shard import keys

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("GYMQ_FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("GYMQ_FUZZ_SEED") or random.SystemRandom().randrange(2**32))

#: Seconds that one input may take on a busy machine, and MiB by which the process may grow.
LIMIT, GROWTH = 20, 512

#: What mutations put in: what has a meaning somewhere.
PIECES = [
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1" * 30),
    *(b"\0", b"\xff", b"\xc1", b"\n", b"\r\n", b"\\u0000", b"\\ud800", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\xef\xbb\xbf"),
    *(b'"role"', b'"content"', b'"tools"', b'"sampling"', b'"responses_create_params"', b'"messages"', b'"environment"', b'"id"'),
    *(b"[" * 300, b'{"a":' * 300, b"\x91" * 300, b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"),
]  # fmt: skip


class Fuzz:
    """A source of mutations that ends in time, and judges what came of each."""

    def __init__(self, kind: str) -> None:
        self.random = random.Random(f"{SEED}:{kind}")
        self.done = 0
        self.kind = kind

    def __iter__(self) -> Iterator[int]:
        until, base = time.monotonic() + SECONDS, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while time.monotonic() < until or self.done < 100:
            begun = time.monotonic()
            yield self.done
            assert time.monotonic() - begun < LIMIT, f"seed {SEED}: {self.kind} {self.done} took too long"
            self.done += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) >> 10
        assert grown < GROWTH, f"seed {SEED}: {grown} MiB more"
        print(f"{self.kind}: {self.done} inputs, seed {SEED}, {grown} MiB more")

    def mutate(self, data: bytes) -> bytes:
        """Change some bytes, cut, repeat, or put in a piece, a few times."""
        made = bytearray(data)
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 8))):
            at = self.random.randrange(len(made) + 1)
            end = min(len(made), at + self.random.choice((1, 1, 2, 8, 100)))
            match self.random.randrange(5):
                case 0:
                    made[at:end] = bytes(self.random.randrange(256) for _ in range(end - at))
                case 1:
                    del made[at:end]
                case 2:
                    made[at:at] = self.random.choice(PIECES)
                case 3:
                    made[at:at] = made[at:end] * self.random.choice((1, 3, 50))
                case 4:
                    made[at:end] = self.random.choice(PIECES)
        return bytes(made[: self.random.randrange(len(made) + 1)] if self.random.random() < 0.05 else made)


def good_rows() -> list[bytes]:
    folder = Path(__file__).parents[2] / "environments"
    found = [line for file in sorted(folder.glob("*/data/*.jsonl")) for line in file.read_bytes().splitlines()[:20]]
    assert len(found) > 20
    return [*found, *(row for _, row, _ in ROWS if len(row) < 1000)]


def test_rows():
    fuzz, seeds, known = Fuzz("rows"), good_rows(), sorted(plugins.points(plugins.ENVIRONMENTS))
    for _ in fuzz:
        row = fuzz.mutate(fuzz.random.choice(seeds))
        try:
            task = parse_row(row, where="w", environment="weather", known=known)
        except DataError as error:
            assert str(error).startswith("w: ") and str(error).isprintable() and len(str(error)) <= 600
            continue
        assert decode_task(encode_task(task)) == task
        assert all(decode_message(turn) for turn in task.encoded)
        json.loads(task.fields), json.loads(task.sampling), json.loads(task.tools or b"[]")


def test_files(tmp_path: Path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    data = [{"prompt": f"Say {n}", "answer": n, "parts": [{"a": None, "b": 1.5}]} for n in range(50)]
    text = "".join(json.dumps(row) + "\n" for row in data).encode()
    parquet.write_table(pyarrow.Table.from_pylist(data), tmp_path / "good.parquet")
    datasets.Dataset.from_list(data).save_to_disk(tmp_path / "saved")
    files = {
        "a.jsonl": text, "b.jsonl.gz": gzip.compress(text), "c.parquet": (tmp_path / "good.parquet").read_bytes(),
        "saved/state.json": (tmp_path / "saved" / "state.json").read_bytes(),
        "saved/dataset_info.json": (tmp_path / "saved" / "dataset_info.json").read_bytes(),
    }  # fmt: skip
    for name in files:  # what is imported at first use is no growth
        list(rows(str(tmp_path / name.partition("/")[0]))) if "/" in name else None
    fuzz = Fuzz("files")
    for _ in fuzz:
        name = fuzz.random.choice(sorted(files))
        (tmp_path / name).write_bytes(fuzz.mutate(files[name]))
        source = tmp_path / name.partition("/")[0]
        try:
            for where, row in rows(str(source)):
                assert where.startswith(str(source))
                assert isinstance(row, bytes)
        except GymqError as error:
            assert "\n" not in str(error), str(error)
        (tmp_path / name).write_bytes(files[name])


TURN = encode_message(Message("user", "go"))
CALL = Call(
    "r.0.0",
    1,
    0,
    "tool",
    "r",
    "weather",
    0,
    1.0,
    1,
    0,
    [TURN],
    "get_weather",
    '{"city":"a"}',
    b"\x80",
    task=b"x",
    parameters=b"y",
)
CODECS: list[tuple[Callable[[bytes], object], bytes]] = [
    (decode_call, encode(CALL)),
    (decode_reply, encode(Reply(0, 1.0, 2.0, "w", None, b"value"))),
    (decode_parameters, encode(RequestParameters(b'{"a":1}', b"[]"))),
    (decode_state, encode_state(State(phase="tools"))),
    (decode_task, encode_task(Task("t", "weather", [TURN], b'{"a":1}'))),
    (decode_message, encode_message(Message("user", [{"type": "text", "text": "é"}]))),
]


def test_codecs():
    fuzz = Fuzz("codecs")
    for _ in fuzz:
        decode, good = fuzz.random.choice(CODECS)
        with suppress(*UNREADABLE, NewerSchema):
            decode(fuzz.mutate(good))


async def test_mail(settings, caplog):
    """Actors take mutated mail: nothing is raised out of them, and all of it is acknowledged."""
    async with linked(settings) as connection:
        actors = [AgentWorker(settings, {}), ResourceWorker(settings, {"environments": "weather"})]
        for actor in actors:
            await actor.boxes.create(connection)
            for one in (actor.connection, actor.reader, actor.life.connection):
                await one.connect()
            await actor.prepare()
            await actor.life.begin()
        fuzz = Fuzz("mail")
        for number in fuzz:
            reply = encode(Reply(0, 1.0, 2.0, "w", None, b"value"))
            fields = [
                b"r",
                b"r.0.0",
                b"v",
                b"0",
                *fuzz.random.choice(
                    [
                        [],
                        [b"t", CODECS[4][1]],
                        [b"y", reply],
                        [b"x", b"run"],
                        [b"d", b"1"],
                        [b"k", b"2", b"w", b"v", b"a", b"3"],
                    ]
                ),
            ]
            place = fuzz.random.randrange(len(fields))
            fields[place] = fuzz.mutate(fields[place])
            await actors[0].handle([Mail(keys.mailbox("agent").encode(), b"%d-1" % (number + 1), fields)])
            body = fuzz.mutate(CODECS[0][1])
            await actors[1].handle([Mail(keys.mailbox("resource:weather").encode(), b"%d-1" % (number + 1), [b"c", body])])
            while len(actors[1].tasks) > 50 or (actors[1].tasks and number % 50 == 0):
                await asyncio.sleep(0.001)
            if number % 50 == 0:
                assert "Traceback" not in caplog.text, f"seed {SEED}: {caplog.text[-2000:]}"
                caplog.clear()
        assert [actor.failure for actor in actors] == [None, None]
        for actor in actors:
            await actor.close()
            for one in (actor.connection, actor.reader, actor.life.connection):
                await one.close()
