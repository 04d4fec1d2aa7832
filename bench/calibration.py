"""The calibration: three bare actors on Streams that pass as many messages of the same size as gymq does, and nothing else.

Agent, model and resource are a process each: XREADGROUP, then one Lua commit for each step (check the version, write the
state, append the turn, send the next message, acknowledge), pipelined for a batch of mail. A rollout is nine messages
(task, 4 calls, 4 replies) and a result, as in gymq's run of `weather`. No Celery, no ledger, no liveness, no sink. Modes:

    client   through redis-py's ordinary methods and pipelines, a JSON object in and out for each message
    raw      through redis-py's bare connection, bodies are opaque bytes that nobody decodes: the least that Python can do
    batched  as raw, with all steps of a batch in one script call, as gymq does: the least that the server can do
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import redis

from bench.meter import Meter, Used
from gymq.process.child_process import ChildProcess
from gymq.process.embedded_redis import EmbeddedRedis

MODES = ("client", "raw", "batched")

ROLES = ("agent", "model", "resource")

#: Bytes of each message's body, and of what a step writes, about those of gymq's run of `weather`.
TASK, CALL, REPLY, STATE, TURN, RECORD = 560, 560, 230, 60, 160, 900

#: The body of a rollout's first message.
FIRST = b'{"task":"%b"}' % (b"x" * TASK)

#: Messages that one read takes.
BATCH = 128

#: Who gets the agent's message of each step; the step after the last one ends the rollout.
STEPS = ("model", "resource", "model", "resource")

#: A step: 1 stream, 2 id, 3 rollout, 4 version, 5 whom to send to ('' ends), 6 body, 7 turn, 8 state, 9 next task to start.
SCRIPT = """
local call = redis.call
local steps = cmsgpack.unpack(ARGV[1])
for i = 1, #steps do
  local s = steps[i]
  local key = 'r:' .. s[3]
  if tonumber(call('HGET', key, 'v') or 0) == s[4] then
    if s[5] == 'agent' then
      call('HSET', key, 'v', s[4] + 1)
      call('XADD', 'agent', '*', 'r', s[3], 'v', s[4] + 1, 'b', s[6])
    elseif s[5] ~= '' then
      call('HSET', key, 'v', s[4] + 1, 's', s[8])
      call('RPUSH', 't:' .. s[3], s[7])
      call('XADD', s[5], '*', 'r', s[3], 'v', s[4] + 1, 'b', s[6])
    else
      local turns = table.concat(call('LRANGE', 't:' .. s[3], 0, -1), ',')
      call('DEL', key, 't:' .. s[3])
      call('XADD', 'results', '*', 'r', s[3], 'b', s[6] .. turns)
      if s[9] ~= '' then call('XADD', 'agent', '*', 'r', s[9], 'v', 0, 'b', s[7]) end
    end
  end
  call('XACK', s[1], 'g', s[2])
  call('XDEL', s[1], s[2])
end
return #steps
"""


class Calibrated(msgspec.Struct):
    """One run of the bare actors.

    Args:
        rate: rollouts per second, from the first task to the last result.
        cpu: milliseconds of CPU for each rollout, all processes and the server.
        used: what was used.
    """

    rate: float
    cpu: float
    used: Used


class _Raw:
    """Reads and commits through a bare connection.

    Args:
        url: the server.
        role: the actor.
        batched: commit a batch with one script call.
    """

    def __init__(self, url: str, role: str, batched: bool) -> None:
        self._connection: Any = redis.Redis.from_url(url, protocol=2).connection_pool.get_connection()
        self._pack = msgpack.Packer(use_bin_type=False).pack
        self._sha = self._ask([("SCRIPT LOAD", SCRIPT)])[0]
        self._role, self._batched = role, batched

    def _ask(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        return [self._connection.read_response() for _ in commands]

    def read(self) -> list[tuple[bytes, bytes, int]]:
        """The next mail: id, rollout, version."""
        role = self._role
        mail = self._ask([("XREADGROUP", "GROUP", "g", role, "COUNT", BATCH, "BLOCK", 1000, "STREAMS", role, ">")])[0]
        return [(id_, fields[1], int(fields[3])) for id_, fields in (mail[0][1] if mail else ())]

    def commit(self, steps: list[list[Any]]) -> None:
        """Commit some steps."""
        calls = [steps] if self._batched else [[step] for step in steps]
        self._ask([("EVALSHA", self._sha, 0, self._pack(call)) for call in calls])


class _Client:
    """Reads and commits as redis-py's manual says; bodies are JSON objects, decoded and encoded for each message."""

    def __init__(self, url: str, role: str) -> None:
        self._client = redis.Redis.from_url(url, protocol=2)
        self._pack = msgpack.Packer(use_bin_type=False).pack
        self._sha = self._client.script_load(SCRIPT)
        self._role = role

    def read(self) -> list[tuple[bytes, bytes, int]]:
        """The next mail: id, rollout, version."""
        mail: Any = self._client.xreadgroup("g", self._role, {self._role: ">"}, count=BATCH, block=1000)
        found: list[tuple[bytes, bytes, int]] = []
        for id_, fields in mail[0][1] if mail else ():
            json.loads(fields[b"b"])
            found.append((id_, fields[b"r"], int(fields[b"v"])))
        return found

    def commit(self, steps: list[list[Any]]) -> None:
        """Commit some steps."""
        pipe = self._client.pipeline(transaction=False)
        for step in steps:
            body = json.dumps({"rollout": step[2].decode(), "version": step[3], "body": step[5].decode()})
            pipe.evalsha(self._sha, 0, self._pack([[*step[:5], body, *step[6:]]]))
        pipe.execute()


def act(role: str, url: str, count: int, window: int, mode: str) -> None:
    """Be one actor until killed."""
    way: Any = _Client(url, role) if mode == "client" else _Raw(url, role, mode == "batched")
    body, state, turn, record = (b"x" * size for size in (CALL if role == "agent" else REPLY, STATE, TURN, RECORD))
    started = window
    print("ready", flush=True)
    while True:
        steps: list[list[Any]] = []
        for id_, rollout, version in way.read():
            if role != "agent":
                steps.append([role, id_, rollout, version, "agent", body, "", "", ""])
            elif version // 2 < len(STEPS):
                steps.append([role, id_, rollout, version, STEPS[version // 2], body, turn, state, ""])
            else:
                following = str(started) if started < count else ""
                started += 1
                steps.append([role, id_, rollout, version, "", record, FIRST, "", following])
        if steps:
            way.commit(steps)


def calibrate(folder: Path, count: int, window: int, mode: str) -> Calibrated:
    """Run the bare actors once, beside a server of their own with gymq's configuration.

    Args:
        folder: for data and logs.
        count: rollouts.
        window: rollouts in flight.
        mode: one of `MODES`.
    """
    window = min(window, count)
    argv = [sys.executable, "-m", "bench.calibration"]
    with EmbeddedRedis(folder / "server") as server:
        client = redis.Redis.from_url(server.url)
        meter = Meter(client)
        meter.add("server", server.pid or 0)
        for role in ROLES:
            client.xgroup_create(role, "g", "0", mkstream=True)
        root = str(Path(__file__).resolve().parent.parent)
        env = {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]), "BENCH_URL": server.url}
        flags = [str(count), str(window), mode]
        actors = [ChildProcess([*argv, role, *flags], env, role, folder / f"{role}.log") for role in ROLES]
        try:
            for actor in actors:
                while not actor.tail(1):
                    if not actor.alive:
                        raise RuntimeError(f"calibration: {actor.name} ended")
                    time.sleep(0.02)
                meter.add(actor.name, actor.pid)
            meter.start()
            began = time.time()
            pipe = client.pipeline(transaction=False)
            for i in range(window):
                pipe.xadd("agent", {"r": str(i), "v": 0, "b": FIRST})
            pipe.execute()
            while int(client.xlen("results")) < count:  # type: ignore[arg-type]
                if not all(actor.alive for actor in actors):
                    raise RuntimeError("\n".join(line for actor in actors for line in actor.tail(9)))
                time.sleep(0.02)
            took = time.time() - began
            used = meter.stop(count)
            if client.dbsize() != len(ROLES) + 1:
                raise RuntimeError("calibration: rollouts are left")
        finally:
            for actor in actors:
                actor.kill()
    return Calibrated(count / took, sum(used.cpu.values()), used)


if __name__ == "__main__":
    act(sys.argv[1], os.environ["BENCH_URL"], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
