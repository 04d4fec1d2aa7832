"""One step of a rollout, as the commit script takes it: what is set, appended, sent, or the end."""

from __future__ import annotations

import msgspec

from gymq.runtime.affinity import Route
from gymq.runtime.mailbox import Mail
from gymq.store.admission import INLINE
from gymq.store.runs import RunConfig
from gymq.store.scripts import BuriedLetter, CommitStep, RolloutEnd, Send
from gymq.wire.calls import Call, CallKind, RequestParameters, encode, idempotency_token
from gymq.wire.record import CallRecord, encode_call

from .state import LiveRollout, encode_state


class Step(msgspec.Struct):
    """The changes of one step; `commit` makes of them what the commit script takes.

    Args:
        config: the rollout's run.
        fields: hash fields to set, names and values in turn.
        messages: messages to append.
        calls: records of the calls whose replies it takes in, to append.
        sends: the encoded calls, each with its mailbox.
        final: the rollout's end; None: it goes on.
        letter: the mail's dead letter; None but for mail that kills its process.
        due: when the rollout is to be looked at if nothing has happened to it until then, seconds since the epoch.
        drop: True: the calls that are pending are given up.
    """

    config: RunConfig
    fields: list[str | bytes] = []
    messages: list[bytes] = []
    calls: list[CallRecord] = []
    sends: list[Send] = []
    final: RolloutEnd | None = None
    letter: BuriedLetter | None = None
    due: float = 0.0
    drop: bool = False

    def commit(self, live: LiveRollout, stream: bytes, mail: bytes, must: bool) -> CommitStep:
        """Return the step as the commit script takes it.

        Args:
            live: the rollout.
            stream: the stream of the mail that caused the step.
            mail: the mail's id in it.
            must: True: the step happens whatever the version is, as a cancellation does.
        """
        if not self.final:
            self.fields += ["s", encode_state(live.state)]
        due = round((self.due - live.state.counted) * 1000)
        return CommitStep(
            live.address, live.version, stream, mail, self.fields, self.messages, [encode_call(call) for call in self.calls],
            self.sends, due, self.final, must, self.letter, self.drop, idempotency_token(live.state.queued),
        )  # fmt: skip

    def send(
        self,
        live: LiveRollout,
        kind: CallKind,
        *,
        born: float,
        mailbox: str = "",
        task: bool = False,
        name: str = "",
        arguments: str = "",
        timeout: float = 0.0,
        way: Route = ([], 0),
    ) -> None:
        """Send a call, with what its callee has not seen yet where that is few bytes.

        Args:
            live: the rollout; what its model or its environment has seen is noted in its state.
            kind: what is asked for.
            born: when the run was created.
            mailbox: where to; the environment's if not given.
            task: whether the callee needs the task.
            name: of a tool call: the tool's name.
            arguments: of a tool call: its arguments as the model wrote them.
            timeout: of a model's call: seconds that it may take.
            way: the workers that are preferred.
        """
        state = live.state
        run, row, _ = live.id
        call = Call(live.address, live.version + 1, len(self.sends), kind, run, live.task.environment, row, state.queued)
        call.length = call.seen = len(live.messages)
        call.name, call.arguments, call.born, call.timeout = name, arguments, born, timeout
        if kind == "ask":
            assert state.ask is not None
            call.messages, call.seen, call.length = state.ask.messages, 0, len(state.ask.messages)
            call.parameters = encode(RequestParameters(state.ask.sampling))
            self.sends.append(Send(mailbox, encode(call)))
            return
        if kind == "generate":
            call.seen, state.model_seen = state.model_seen, call.length
            if call.seen == 0 and live.parameters is not None and len(live.parameters) <= INLINE:
                call.parameters = live.parameters
        elif kind in ("respond", "verify"):
            call.seen, state.resource_seen = state.resource_seen, call.length
            if state.ask is not None:
                call.answer, call.note = state.answer, state.ask.note
        new = live.messages[call.seen :]
        if sum(map(len, new)) <= INLINE:
            call.messages = new
        if kind != "generate" and live.environment_state is not None:
            call.has_state = True
            if len(live.environment_state) <= INLINE:
                call.state = live.environment_state
        if task and len(live.task_data) <= INLINE:
            call.task = live.task_data
        self.sends.append(Send(mailbox or f"resource:{call.environment}", encode(call), *(way if way[0] else ())))


def acknowledge(mail: Mail) -> CommitStep:
    """Return a commit that only acknowledges mail, because its version is one that no rollout has."""
    return CommitStep(mail.fields[1], -1, mail.stream, mail.id)


def postpone(mail: Mail, seconds: float) -> CommitStep:
    """Return a commit that acknowledges mail which came too early, and says when its rollout is due again.

    Args:
        mail: the mail.
        seconds: from now.
    """
    return CommitStep(mail.fields[1], int(mail.fields[3]), mail.stream, mail.id, None, due=max(1000, round(seconds * 1000)))


def pass_over(mail: Mail, must: bool = False) -> CommitStep:
    """Return a commit that acknowledges mail whose rollout has ended or gone on; a conflict if that is not so any more.

    Args:
        mail: the mail.
        must: True: it cancels, and its rollout has ended.
    """
    return CommitStep(mail.fields[1], int(mail.fields[3]), mail.stream, mail.id, None, must=must)
