"""The agent role: takes the rollouts' mail, advances each by one step, commits many steps at once, admits new ones."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from gymq import plugins
from gymq.cache import byte_cache
from gymq.errors import UNREADABLE, Fault, UnknownName, one_line
from gymq.observe import traces
from gymq.observe.events import (
    CallRetried,
    DeadLettered,
    MailRefused,
    RolloutFinished,
    StepCommitted,
    StepRejected,
    emit,
    wanted,
)
from gymq.runtime.actor import Actor
from gymq.runtime.affinity import AffinityRouter
from gymq.runtime.dead_letters import dead_letter_of_step
from gymq.runtime.mailbox import MAX_DIGITS, STRIKES, Mail
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings
from gymq.store import scripts
from gymq.store.admission import admit
from gymq.store.batching import batches
from gymq.store.connection import FULL_PAUSE, Connection, Outage, ServerFull
from gymq.store.scripts import BuriedLetter, CommitOutcome, CommitStep, LoadRequest
from gymq.wire.calls import CALL, decode_reply
from gymq.wire.ids import RolloutAddress, RolloutId, place
from gymq.wire.task import decode_task

from .events import RolloutEvents
from .machine import Machine
from .run_cache import RunCache
from .state import WEIGHT, LiveRollout, NewerSchema, decode_state
from .step import Step, acknowledge, pass_over, postpone
from .step_context import StepContext
from .tool_turn import MAX_PARALLEL_TOOLS

#: Messages of one commit: a few milliseconds of the server's time.
STEPS_PER_COMMIT = 64

#: Rollouts that one sweep wakes because they are due: a millisecond of the server's time.
WAKES = 500

#: Seconds until a rollout that was woken is due again, should its mail come to nothing.
WAKE_AGAIN = 10.0

#: The scopes of a cancellation that mail may name; the rollout's record repeats it.
CANCELLED = frozenset({"run", "group", "rollout"})

#: Fields of one message: a reply to each call that may be out together, and few more.
MAX_REPLY_FIELDS = 2 * MAX_PARALLEL_TOOLS + 20

log = logging.getLogger(__name__)


class Unreadable:
    """Stands in for a rollout of which something else is stored than gymq writes."""


class AgentWorker(Actor):
    """Advances rollouts; see `Actor`."""

    role = "agent"
    reads_times = True

    def __init__(self, settings: Settings, options: RoleOptions, *, suspects_only: bool = False) -> None:
        super().__init__(settings, options, capacity=2 * STEPS_PER_COMMIT, suspects_only=suspects_only)
        self._cache = byte_cache(_weigh)
        self._runs = RunCache(self.connection, plugins.load_agents(options.get("agent")))
        self._routes = AffinityRouter()
        self._admission = Connection(settings, "gymq-admit")
        self._shown = RolloutEvents(self.events, self.host)
        self.counts |= {"steps": 0, "applied": 0, "conflicts": 0, "loaded": 0, "ended": 0, "admitted": 0, "woken": 0}

    def mailboxes(self) -> list[str]:
        """The agents' one mailbox: any agent worker can advance any rollout."""
        return ["agent"]

    async def handle(self, mail: list[Mail]) -> None:
        """Advance each message's rollout, in commits of at most `STEPS_PER_COMMIT` steps."""
        mail = await self._sort_out(mail)
        while mail:
            batch: list[Mail] = []
            later: list[Mail] = []
            rids: set[bytes] = set()
            for message in mail:
                # Two steps of one rollout do not fit into one commit: the second is decided on what the first did.
                fits = len(batch) < STEPS_PER_COMMIT and message.fields[1] not in rids
                (batch if fits else later).append(message)
                rids.add(message.fields[1])
            mail = later + await self._commit(batch)

    async def _sort_out(self, mail: list[Mail]) -> list[Mail]:
        """Acknowledge forged mail, and return the rest."""
        forged = [message for message in mail if not _addressed(message.fields)]
        if not forged:
            return mail
        await self.connection.insist(scripts.commit([acknowledge(message) for message in forged]))
        for message in forged:
            self._refuse(message, "it names no rollout and version, or has too many fields")
            self.intake.release(message)
        return [message for message in mail if _addressed(message.fields)]

    def _refuse(self, mail: Mail, reason: object) -> None:
        where = f"{mail.id.decode()} in {mail.stream.decode()}"
        emit(MailRefused(self.role, where, f"is no mail of a rollout: {reason}"))

    async def _commit(self, batch: list[Mail]) -> list[Mail]:
        """Advance a batch; returns the mail to decide again."""
        lives = await self._gather(batch)
        again = batch[len(lives) :]
        batch = batch[: len(lives)]
        newer = {i: live.schema for i, live in enumerate(lives) if isinstance(live, NewerSchema)}
        if newer:
            await self.park([batch[i] for i in newer], list(newer.values()))
            batch = [mail for i, mail in enumerate(batch) if i not in newer]
        known = [live for live in lives if not isinstance(live, NewerSchema)]
        if not batch:
            return again
        self._runs.forget_versions()
        commits: list[CommitStep] = []
        done: list[tuple[Mail, LiveRollout | None, Step | None]] = []
        for mail, found in zip(batch, known, strict=True):
            must = b"x" in mail.fields[4::2]
            live = found if isinstance(found, LiveRollout) else None
            step: Step | None = None
            if isinstance(found, Unreadable):
                commits.append(acknowledge(mail))
            elif live is None or not (live.version == int(mail.fields[3]) or must):
                # What this was read from may be ahead of Redis.
                commits.append(pass_over(mail, must))
            else:
                decided = await self._advance(mail, live, must)
                if isinstance(decided, Step):
                    step = decided
                    commits.append(step.commit(live, mail.stream, mail.id, must))
                else:
                    commits.append(acknowledge(mail) if decided is None else postpone(mail, decided))
            done.append((mail, live, step))
        outcomes: list[CommitOutcome] = []
        for some in batches(commits, STEPS_PER_COMMIT, lambda commit: commit.weight):
            answer = await self.connection.insist(scripts.commit(some, CALL))
            outcomes += answer
        ended = 0
        for (mail, live, step), outcome in zip(done, outcomes, strict=True):
            self.counts["steps"] += 1
            rid = mail.fields[1].decode()
            if outcome is CommitOutcome.CONFLICT:
                self.counts["conflicts"] += 1
                self._cache.pop(rid, None)
                emit(StepRejected(rid, "conflict"))
                again.append(mail)
                continue
            self.intake.release(mail)
            if outcome is CommitOutcome.STALE or live is None or step is None:
                self.counts["stale"] += 1
                self._cache.pop(rid, None)
                emit(StepRejected(rid, "stale"))
                continue
            self.counts["applied"] += 1
            self._tell(mail, live, step)
            live.version += 1
            if step.final:
                ended += 1
                self._cache.pop(rid, None)
                self._shown.ended(live)
            else:
                self._cache[rid] = live
        if ended:
            self.counts["ended"] += ended
            await self._admit()
        return again

    def _tell(self, mail: Mail, live: LiveRollout, step: Step) -> None:
        """Emit what a committed step has done."""
        run, environment, state, config = live.id.run, live.task.environment, live.state, step.config
        now = time.time()
        emit(
            StepCommitted(
                self.worker, live.rid, run, environment, live.version, step.calls, now, config.model, config.created
            )
        )  # fmt: skip
        if state.resume:
            for call in step.calls:
                if call.fault is not None:
                    emit(CallRetried(live.rid, call.kind, call.fault.kind))
        if step.letter is not None:
            emit(DeadLettered(f"{live.address}:{live.version}", self.role, live.rid, "act", "", mail.attempt))
        if step.final and wanted(RolloutFinished):
            score, fault = state.score, state.fault
            reward = score.reward if score else None
            why = "" if reward is not None else (score.reason if score else state.no_reward)
            emit(
                RolloutFinished(
                    live.rid, run, environment, state.status, state.stop, f"{fault.kind}: {fault.message}" if fault else "",
                    reward, why, state.turns, state.tool_calls, state.usage, state.started_at, now,
                    config.agent, config.model, config.created,
                )
            )  # fmt: skip

    async def _advance(self, mail: Mail, live: LiveRollout, must: bool) -> Step | float | None:
        """Return the step of mail; a number: it came too early, by so many seconds; None: it is forged, or its run is gone."""
        try:
            config, spec, agent = await self._runs.load(live.id.run, live.incarnation, live.task.environment)
        except UnknownName:
            return None
        machine = Machine(StepContext(live, config, spec, agent, await self._runs.version(config), self._routes, self.times))
        if must:
            what = mail.fields[mail.fields[4::2].index(b"x") * 2 + 5].decode(errors="replace")
            if what not in CANCELLED:
                self._refuse(mail, "it cancels neither a run nor a group nor a rollout")
                return None
            return machine.cancel(Fault("cancelled", f"the {what} was cancelled"))
        if mail.strikes >= STRIKES:
            poison, letter = dead_letter_of_step(mail, live.version, live.task_data, config)
            step = machine.abandon(poison.fault)
            step.letter = BuriedLetter(letter, self.settings.ttl)
            return step
        fields = mail.fields
        try:
            replies = [decode_reply(fields[i + 1]) for i in range(4, len(fields), 2) if fields[i] == b"y"]
        except UNREADABLE as error:
            self._refuse(mail, error)
            return None
        due = b"d" in fields[4::2] and live.state.phase != "new"  # one that has not begun begins: its mail was lost
        pending = 0 if due else live.state.pending
        if len(replies) != pending:
            self._refuse(mail, f"it has {len(replies)} replies and {pending} calls are pending")
            return None
        if live.state.phase == "new":
            live.state.shown = self._shown.begun(live)
        try:
            return (machine.due() or machine.not_yet()) if due else machine.advance(replies)
        except UNREADABLE as error:
            self._refuse(mail, f"what a reply brings cannot be read: {error}")
            return machine.abandon(Fault("internal", one_line(f"what a reply brings cannot be read: {error}")))
        except Exception as error:
            # A defect of gymq fails this rollout only: ending the process would have the mail redelivered, ten times.
            log.exception("a defect of gymq fails rollout %s", live.rid)
            return machine.abandon(Fault("internal", f"{type(error).__name__}: {error}; the worker's log has more"))

    async def _gather(self, batch: list[Mail]) -> list[LiveRollout | NewerSchema | Unreadable | None]:
        """Return the rollouts of mail: cached since the last step, begun by the mail itself, or loaded; None: gone.

        Large ones end the list before the last mail: the others come after these were committed.
        """
        lives: list[LiveRollout | NewerSchema | Unreadable | None] = []
        missing: list[tuple[int, str]] = []
        for i, mail in enumerate(batch):
            fields = mail.fields
            rid = fields[1].decode()
            live = self._cache.get(rid)
            if live is not None and live.version != int(fields[3]):
                live = None
            if live is None and fields[3] == b"0" and len(fields) > 5 and fields[4] == b"t":
                with suppress(*UNREADABLE):  # then it is loaded: the ledger has it
                    live = LiveRollout(place(rid), 0, decode_state(None), [], decode_task(fields[5]), fields[5], address=rid)
            if live is None:
                missing.append((i, rid))
            lives.append(live)
        if missing:
            self.counts["loaded"] += len(missing)
            wanted = [LoadRequest(rid, 0, *RolloutId.parse(place(rid))[:2]) for _, rid in missing]
            loaded = await self.connection.insist(scripts.load_rollouts(wanted))
            if len(loaded) < len(missing):
                del lives[missing[len(loaded)][0] :]
            for (i, rid), kept in zip(missing, loaded, strict=False):
                if kept.version is not None:
                    weight = WEIGHT + sum(map(len, kept.messages))
                    try:
                        lives[i] = LiveRollout(
                            place(rid), int(kept.version), decode_state(kept.state), kept.messages,
                            decode_task(kept.task or b""), kept.task or b"", kept.environment_state, kept.parameters,
                            weight, rid,
                        )  # fmt: skip
                    except NewerSchema as error:
                        lives[i] = error
                    except UNREADABLE as error:
                        self._refuse(batch[i], f"what is stored of {rid} cannot be read: {error}")
                        lives[i] = Unreadable()
        return lives

    # Duties besides the mail.

    async def prepare(self) -> None:
        """Open the connection for admissions, look who has private mailboxes, and begin traces where they are wanted."""
        traces.start()
        await self._admission.connect()
        while not self.times.known:  # the first mail is decided by the server's clock, too
            try:
                await self.tell_time()
            except Outage:
                await self.life.recover()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)
        with suppress(Outage):
            await self._look()

    async def close(self) -> None:
        """Close the connection for admissions, and export what is left of traces."""
        await traces.flush()
        await self._admission.close()

    async def duties(self) -> None:
        """Admit what may be admitted, wake what is due, and look who has private mailboxes."""
        self._runs.forget()
        await self._admit()
        self.counts["woken"] += await self.life.connection.run(scripts.wake(WAKES, int(WAKE_AGAIN * 1000)))
        await self._look()

    async def _look(self) -> None:
        self._routes = AffinityRouter(await self.life.connection.send("HGETALL", self.connection.keys.private))

    async def _admit(self) -> None:
        try:
            if not self.intake.closed:
                self.counts["admitted"] += await admit(self._admission)
        except Outage:
            await self._admission.reconnect()
        except ServerFull:
            pass  # the next sweep tries again

    async def forget(self) -> None:
        """Drop the cached rollouts: other workers may have advanced them."""
        self._cache = byte_cache(_weigh)


def _addressed(fields: list[bytes]) -> bool:
    """Return whether mail names a rollout and a version, and has no more fields than gymq sends."""
    return (
        4 <= len(fields) <= MAX_REPLY_FIELDS
        and RolloutAddress.is_one(fields[1])
        and len(fields[3]) < MAX_DIGITS
        and fields[3].isdigit()
    )


def _weigh(live: LiveRollout) -> int:
    return live.weight
