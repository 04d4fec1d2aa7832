"""What model and resource workers share: they serve calls, and keep of each conversation what they have read."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

import msgspec

from gymq.actor import Actor
from gymq.batch import Batcher, pack
from gymq.cache import Cache
from gymq.call import Call, Reply, decode_call, encode
from gymq.dead import bury_call
from gymq.errors import CallError, Fault
from gymq.mailbox import STRIKES, Mail
from gymq.settings import Settings
from gymq.task import Task, decode_task


class Kept:
    """What a server keeps of a rollout.

    Args:
        turns: encoded messages.
        plan: the rollout's encoded plan, or None.
        extra: whatever the role derives from them and wants to keep.
        weight: about how many bytes it takes to keep.
    """

    __slots__ = ("extra", "plan", "turns", "weight")

    def __init__(self, turns: list[bytes], plan: bytes | None) -> None:
        self.turns = turns
        self.plan = plan
        self.extra: Any = None
        self.weight = 500

    def replace(self, first: int, turns: list[bytes]) -> None:
        """Put messages in the place of those from an index on."""
        self.weight += sum(map(len, turns)) - sum(map(len, self.turns[first:]))
        self.turns[first:] = turns


class CallServer(Actor):
    """Base of the roles that serve calls; see `Actor`."""

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        super().__init__(settings, options)
        self._replies = Batcher(self._send_replies, self.ended)
        self._loads = Batcher(self._load, self.ended)
        self._kept: Cache[Kept] = Cache()
        self._tasks_kept: Cache[Task] = Cache()
        self.counts |= {"served": 0, "faults": 0, "loaded": 0}

    async def serve(self, call: Call) -> bytes:
        """Do what a call asks for and return the encoded value.

        Raises:
            CallError: it ended with a fault.
        """
        raise NotImplementedError

    async def handle(self, mail: list[Mail]) -> None:
        """Start each call."""
        for one in mail:
            self.spawn(self._serve(one))

    async def _serve(self, mail: Mail) -> None:
        try:
            call = decode_call(mail.fields[1])
        except msgspec.MsgspecError as error:
            # Nobody can answer it: it is acknowledged, and what waits for it, if anything does, becomes overdue.
            print(f"gymq: mail {mail.id!r} in {mail.stream!r} is no call: {error}", file=sys.stderr)
            self._replies.put((mail, ["", 0, 0, b"", mail.stream, mail.id, ""]))
            return
        started = time.time()
        fault, value = None, b""
        letter = None
        try:
            if mail.strikes >= STRIKES:
                poison, letter = await bury_call(self.link, mail, call, self.role)
                raise poison
            value = await self.serve(call)
        except CallError as error:
            fault = error.fault
        except Exception as error:
            traceback.print_exc()
            fault = Fault("internal", f"{type(error).__name__}: {error}; the worker's log has more")
        if fault is not None:
            self.counts["faults"] += 1
        self.reply(mail, call, started, fault, value, letter)

    def reply(
        self, mail: Mail, call: Call, started: float, fault: Fault | None, value: bytes, letter: bytes | None = None
    ) -> None:
        """Send a call's reply, perhaps with its dead letter, and acknowledge its mail."""
        last = [] if letter is None else [letter, self.settings.ttl]
        reply = Reply(call.n, started, time.time(), self.worker, fault, value, mail.attempt)
        self._replies.put((mail, [call.rollout, call.step, call.n, encode(reply), mail.stream, mail.id, call.mark, *last]))

    async def _send_replies(self, batch: list[tuple[Mail, list[Any]]]) -> list[Any]:
        outcomes = await self.link.insist("reply", pack([reply for _, reply in batch]))
        for (mail, _), outcome in zip(batch, outcomes, strict=True):
            self.release(mail)
            self.counts["served" if outcome else "stale"] += 1
        return outcomes

    async def _load(self, wanted: list[list[Any]]) -> list[Any]:
        self.counts["loaded"] += len(wanted)
        return await self.link.insist("load", pack(wanted))

    async def conversation(self, call: Call, plan: bool = False) -> Kept:
        """The rollout's messages up to the call's length, and its plan if asked for; reads only what is not kept.

        Raises:
            CallError: the rollout has ended meanwhile.
        """
        key = f"{call.rollout}@{call.born}"
        cache = self._kept  # another one after an outage: what was begun before must not get into it
        kept = cache.get(key)
        if kept is None:
            kept = Kept([], None)
        have = len(kept.turns)
        if call.plan is not None:
            kept.plan = call.plan
        if have > call.length:
            kept.replace(call.length, [])
            kept.extra = None
        elif call.seen <= have < call.length and len(call.turns) == call.length - call.seen:
            kept.replace(have, call.turns[have - call.seen :])
        if len(kept.turns) < call.length or (plan and kept.plan is None):
            missing = len(kept.turns) if len(kept.turns) < call.length else -1
            _, _, _, stored, turns, _ = await self._loads.ask([call.rollout, missing, call.run, -1])
            if missing >= 0:
                kept.replace(missing, turns[: call.length - missing])
            kept.plan = stored if kept.plan is None else kept.plan
            if len(kept.turns) < call.length or (plan and kept.plan is None):
                raise CallError("cancelled", "the rollout has ended meanwhile")
        cache.put(key, kept, kept.weight)
        return kept

    async def task(self, call: Call) -> Task:
        """The call's task.

        Raises:
            CallError: it is gone: the rollout has ended.
        """
        key = f"{call.run}.{call.row}@{call.born}"
        task = self._tasks_kept.get(key)
        if task is None:
            data = call.task
            if data is None:
                data = (await self._loads.ask([call.rollout, -1, call.run, call.row]))[5]
            if data is None:
                raise CallError("cancelled", "the rollout has ended meanwhile")
            task = decode_task(data)
            self._tasks_kept.put(key, task, 500 + len(data))
        return task

    async def memory(self, call: Call) -> bytes | None:
        """The environment's state, encoded, or None if it has none."""
        if call.state is not None or not call.has_state:
            return call.state
        return (await self._loads.ask([call.rollout, -1, call.run, -1]))[2]

    def done_with(self, call: Call) -> None:
        """Forget a rollout that needs this server no more."""
        self._kept.drop(f"{call.rollout}@{call.born}")

    async def forget(self) -> None:
        """Drop what was read."""
        self._kept, self._tasks_kept = Cache(), Cache()
