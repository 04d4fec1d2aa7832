"""Base of the model and resource workers: they serve calls, and keep what they have read of each conversation."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from gymq.cache import byte_cache
from gymq.errors import UNREADABLE, CallError, Fault, one_line
from gymq.observe import events
from gymq.observe.events import CallFinished, DeadLettered, MailRefused, emit
from gymq.observe.work import work_in_hand
from gymq.process.open_files import room_for
from gymq.runtime.actor import Actor
from gymq.runtime.blame import exhausted
from gymq.runtime.dead_letters import dead_letter_of_call
from gymq.runtime.mailbox import STRIKES, Mail
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.batching import Batcher
from gymq.store.scripts import CallKey, LoadedRollout, LoadRequest, ReplyEntry, ReplyOutcome
from gymq.wire.activity import WINDOW, InWork
from gymq.wire.calls import SCHEMA, Call, Reply, Tokens, Usage, call_schema, decode_call, encode
from gymq.wire.recorded_tokens import past
from gymq.wire.task import Task, decode_task

#: Seconds in its mailbox or in work after which a call is checked to be still pending: most calls are over by then, and
#: cost nothing.
WANTED_CHECK_AFTER = 1.0

#: Names and values of a call's mail: its own field, and what the hand-back wrote; a newer version may have a few more.
MAX_CALL_FIELDS = 40

#: Calls that one script looks at: a millisecond of the server's time.
PENDING_BATCH = 500

log = logging.getLogger(__name__)


class _Serving:
    """A call in work, since a time of the monotonic clock."""

    __slots__ = ("call", "since", "task", "unwanted")

    def __init__(self, call: Call, task: asyncio.Task[None], since: float) -> None:
        self.call = call
        self.task = task
        self.since = since
        self.unwanted = False


class _Answer:
    """A reply on its way, with what is told of it once it is merged; no call: the mail is acknowledged without one."""

    __slots__ = ("call", "entry", "mail", "reply", "usage")

    def __init__(self, mail: Mail, entry: ReplyEntry, call: Call | None, reply: Reply | None, usage: Usage | None) -> None:
        self.mail = mail
        self.entry = entry
        self.call = call
        self.reply = reply
        self.usage = usage


class ConversationCopy:
    """A worker's copy of a rollout's conversation.

    Args:
        messages: encoded messages.
        parameters: the rollout's encoded parameters, or None.
        extra: whatever the role derives from them and wants to keep.
        weight: about how many bytes it takes to keep.
    """

    __slots__ = ("extra", "messages", "parameters", "weight")

    def __init__(self, messages: list[bytes], parameters: bytes | None) -> None:
        self.messages = messages
        self.parameters = parameters
        self.extra: Any = None
        self.weight = 500

    def replace(self, first: int, messages: list[bytes]) -> None:
        """Put messages in the place of those from an index on.

        Args:
            first: the index.
            messages: encoded.
        """
        self.weight += sum(map(len, messages)) - sum(map(len, self.messages[first:]))
        self.messages[first:] = messages


class CallWorker(Actor):
    """Base of the roles that serve calls; see `Actor`."""

    def __init__(self, settings: Settings, options: RoleOptions, *, capacity: int = 256, suspects_only: bool = False) -> None:
        room = 1 if suspects_only else room_for(capacity)
        super().__init__(settings, options, capacity=room, suspects_only=suspects_only)
        self._serving: dict[tuple[bytes, bytes], _Serving] = {}
        self._replies = Batcher(self._send_replies, self.ended, _weigh_answer)
        self.loads = Batcher(self._load, self.ended)
        self.conversations = byte_cache(_weigh_copy)
        self._tasks_kept = byte_cache(_weigh_task)
        #: Seconds that calls in hand have waited for rate limits, by the call's id.
        self.waited: dict[str, float] = {}
        #: Tokens of calls in hand that a model has answered, by the call's id; empty while no event of calls is wanted.
        self.usages: dict[str, Usage] = {}
        self.counts |= {"served": 0, "faults": 0, "loaded": 0, "unwanted": 0}

    async def serve(self, call: Call) -> bytes | None:
        """Do what a call asks for and return the encoded value; None: another process has replied.

        Raises:
            CallError: it ended with a fault.
        """
        raise NotImplementedError

    async def handle(self, mail: list[Mail]) -> None:
        """Start each call; of those that lay long, only those that are still pending."""
        calls: list[tuple[Mail, Call]] = []
        newer: list[tuple[Mail, int]] = []
        late: list[int] = []
        oldest = (self.times.now() - WANTED_CHECK_AFTER) * 1000
        for one in mail:
            schema = call_schema(one.fields[0])
            try:
                if len(one.fields) > MAX_CALL_FIELDS:
                    raise msgspec.ValidationError(f"it has {len(one.fields) // 2} fields")
                if schema > SCHEMA:
                    newer.append((one, schema))
                    continue
                call = decode_call(one.fields[1])
                # Not so is every comparison with NaN, which as a time-out would stop the clock of the loop.
                if min(call.step, call.n, call.row, call.length, call.seen) < 0 or not call.timeout >= 0:
                    raise msgspec.ValidationError("it has a negative number, or one that is none")
            except UNREADABLE as error:
                # It cannot be answered: a rollout that waits for it finds it overdue.
                emit(MailRefused(self.role, f"{one.id!r} in {one.stream!r}", f"is no call: {error}"))
                self._acknowledge(one)
                continue
            # A stream's ids are the times at which its entries were made.
            if call.kind != "close" and int(one.id.partition(b"-")[0]) < oldest:
                late.append(len(calls))
            calls.append((one, call))
        if newer:
            await self.park([one for one, _ in newer], [schema for _, schema in newer])
        wanted = dict(zip(late, await self._wanted([calls[i][1] for i in late]), strict=True)) if late else {}
        for i, (one, call) in enumerate(calls):
            if wanted.get(i, True):
                self.spawn(self._serve(one, call))
            else:
                self.counts["unwanted"] += 1
                self._acknowledge(one, call)

    async def _serve(self, mail: Mail, call: Call) -> None:
        key = (mail.stream, mail.id)
        current = asyncio.current_task()
        assert current is not None
        serving = self._serving[key] = _Serving(call, current, time.monotonic())
        started = self.times.now()
        work_in_hand.set(call)
        fault: Fault | None = None
        value: bytes | None = b""
        letter = None
        try:
            if mail.strikes >= STRIKES:
                poison, letter = await dead_letter_of_call(self.connection, mail, call, self.role)
                raise poison
            value = await self.serve(call)
        except CallError as error:
            fault = error.fault
        except UNREADABLE as error:
            log.warning("call %r brought or found what cannot be read: %s", call.id, error)
            fault = Fault("internal", f"what the call brought or found cannot be read: {error}")
        except asyncio.CancelledError:
            if serving.unwanted:
                self.counts["unwanted"] += 1
                self._acknowledge(mail, call)
            raise
        except Exception as error:
            fault = self._unforeseen(call, error)
        finally:
            self._serving.pop(key, None)
        if value is None:
            return self._acknowledge(mail, call)
        if fault is not None:
            self.counts["faults"] += 1
        self.reply(mail, call, started, fault, value, letter)

    def _unforeseen(self, call: Call, error: Exception) -> Fault:
        said = f"{type(error).__name__}: {error}"
        if exhausted(error):
            log.warning("call %r ended for want of something: %s", call.id, said)
            return Fault("unavailable", one_line(f"its worker has run out of something: {said}"))
        log.exception("a defect of gymq: call %r ended with what no call may raise", call.id)
        return Fault("internal", one_line(f"{said}; the worker's log has more"))

    def interruptible(self, call: Call) -> bool:
        """Return whether a call that is no longer pending may be cut off; one that cleans up runs to its end."""
        return call.kind != "close"

    async def duties(self) -> None:
        """Cut off calls that are no longer pending: the rollout has ended or gone on, or another worker has answered."""
        since = time.monotonic() - WANTED_CHECK_AFTER
        long = [one for one in self._serving.values() if one.since < since and self.interruptible(one.call)]
        for one, wanted in zip(long, await self._wanted([one.call for one in long]), strict=True):
            if not wanted and not one.task.done():
                one.unwanted = True
                one.task.cancel()

    def in_work(self) -> dict[str, InWork]:
        """See `Actor`."""
        now, working = time.monotonic(), dict[str, InWork]()
        for one in self._serving.values():
            seconds = now - one.since
            working.setdefault(one.call.kind, InWork()).add(InWork(1, min(seconds, WINDOW), seconds))
        return working

    async def _wanted(self, calls: list[Call]) -> list[bool]:
        pending: list[bool] = []
        for first in range(0, len(calls), PENDING_BATCH):
            asked = [CallKey(call.rollout, call.step, call.n) for call in calls[first : first + PENDING_BATCH]]
            answers = await self.connection.insist(scripts.pending_calls(asked))
            pending += answers
        return pending

    def _acknowledge(self, mail: Mail, call: Call | None = None) -> None:
        """Acknowledge mail without a reply: it is none, or its call is not pending any more."""
        entry = ReplyEntry("", 0, 0, None, mail.stream, mail.id)
        if call is not None:
            entry.rollout, entry.step, entry.n, entry.token = call.rollout, call.step, call.n, call.idempotency_token
        self._replies.put(_Answer(mail, entry, None, None, None))

    def reply(
        self, mail: Mail, call: Call, started: float, fault: Fault | None, value: bytes, letter: bytes | None = None
    ) -> None:
        """Send a call's reply and acknowledge its mail.

        Args:
            mail: the call's mail.
            call: the call.
            started: when its work began, seconds since the epoch.
            fault: how it failed, or None.
            value: the encoded value.
            letter: the encoded dead letter of a call that was given up.
        """
        waited = self.waited.pop(call.id, 0.0)
        reply = Reply(call.n, started, self.times.now(), self.worker, fault, value, mail.attempt, waited)
        entry = ReplyEntry(call.rollout, call.step, call.n, encode(reply), mail.stream, mail.id, call.idempotency_token)
        if letter is not None:
            entry.letter, entry.letter_ttl = letter, self.settings.ttl
        self._replies.put(_Answer(mail, entry, call, reply, self.usages.pop(call.id, None) if self.usages else None))

    async def _send_replies(self, batch: list[_Answer]) -> list[ReplyOutcome]:
        outcomes = await self.connection.insist(scripts.reply([answer.entry for answer in batch]))
        told = events.wanted(CallFinished)
        for answer, outcome in zip(batch, outcomes, strict=True):
            if outcome is ReplyOutcome.WANTED:
                self.spawn(self.handle([answer.mail]))
                continue
            applied = outcome is ReplyOutcome.MERGED
            self.intake.release(answer.mail)
            self.counts["served" if applied else "stale"] += 1
            if answer.call is not None and answer.reply is not None:
                if told:
                    emit(CallFinished.of(self.role, answer.call, answer.reply, applied, answer.usage))
                if applied and answer.entry.letter:
                    emit(self._dead_letter(answer.mail, answer.call))
        return outcomes

    def _dead_letter(self, mail: Mail, call: Call) -> DeadLettered:
        name = call.name or self.boxes.of(mail).partition(":")[2]
        return DeadLettered(call.id, self.role, call.place, call.kind, name, mail.attempt)

    async def _load(self, wanted: list[LoadRequest]) -> list[LoadedRollout]:
        self.counts["loaded"] += len(wanted)
        loaded: list[LoadedRollout] = []
        while len(loaded) < len(wanted):
            some = await self.connection.insist(scripts.load_rollouts(wanted[len(loaded) :]))
            loaded += some
        return loaded

    async def conversation(self, call: Call, parameters: bool = False) -> ConversationCopy:
        """Return the rollout's messages up to the call's length; read only those that are not kept.

        Args:
            call: the call.
            parameters: return its parameters, too.

        Raises:
            CallError: the rollout has ended meanwhile.
        """
        key = f"{call.rollout}@{call.born}"
        cache = self.conversations  # another one after an outage: what was begun before must not get into it
        kept = cache.get(key)
        if kept is None:
            kept = ConversationCopy([], None)
        have = len(kept.messages)
        if call.parameters is not None:
            kept.parameters = call.parameters
        if have > call.length:
            kept.replace(call.length, [])
            kept.extra = None
        elif call.seen <= have < call.length and len(call.messages) == call.length - call.seen:
            kept.replace(have, call.messages[have - call.seen :])
        if len(kept.messages) < call.length or (parameters and kept.parameters is None):
            missing = len(kept.messages) if len(kept.messages) < call.length else -1
            loaded = await self.loads.ask(LoadRequest(call.rollout, missing, call.run, -1))
            if missing >= 0:
                kept.replace(missing, loaded.messages[: call.length - missing])
            kept.parameters = loaded.parameters if kept.parameters is None else kept.parameters
            if len(kept.messages) < call.length or (parameters and kept.parameters is None):
                raise CallError("cancelled", "the rollout has ended meanwhile")
        cache[key] = kept
        return kept

    async def task(self, call: Call) -> Task:
        """Return the call's task.

        Raises:
            CallError: the rollout has ended, and the task went with it.
        """
        key = f"{call.run}.{call.row}@{call.born}"
        kept = self._tasks_kept.get(key)
        if kept is None:
            data = call.task
            if data is None:
                data = (await self.loads.ask(LoadRequest(call.rollout, -1, call.run, call.row))).task
            if data is None:
                raise CallError("cancelled", "the rollout has ended meanwhile")
            self._tasks_kept[key] = kept = decode_task(data), len(data)
        return kept[0]

    async def environment_state(self, call: Call) -> bytes | None:
        """Return the environment's encoded state, or None if it has none."""
        if call.state is not None or not call.has_state:
            return call.state
        return (await self.loads.ask(LoadRequest(call.rollout, -1, call.run, -1))).environment_state

    async def history(self, call: Call) -> list[tuple[int, Tokens]]:
        """Return the token ids of the rollout's answers before this call, as `Request.history`."""
        return past((await self.loads.ask(LoadRequest(call.rollout, -1, call.run, -1, records=True))).records, call.step)

    def done_with(self, call: Call) -> None:
        """Forget a rollout that needs this worker no more."""
        self.conversations.pop(f"{call.rollout}@{call.born}", None)

    async def forget(self) -> None:
        """Drop what was read."""
        self.conversations, self._tasks_kept = byte_cache(_weigh_copy), byte_cache(_weigh_task)


def _weigh_answer(answer: _Answer) -> int:
    return len(answer.entry.body or b"")


def _weigh_copy(copy: ConversationCopy) -> int:
    return copy.weight


def _weigh_task(kept: tuple[Task, int]) -> int:
    """Return the bytes of a task that is kept with the length of its encoded form."""
    return 500 + kept[1]
