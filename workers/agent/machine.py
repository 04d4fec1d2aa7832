"""The state machine of a rollout: from replies to the step that is to be committed. It does no input or output.

    new ─▶ opening ─▶ generating ─▶ tools ─▶ generating ─▶ ... ─▶ responding ─▶ ... ─▶ verifying ─▶ closing ─▶ ended

The agent decides what comes after a message; this machine bounds it, sends the calls, sends them again after faults that
may pass, and sees to it that a rollout ends with a status whatever happens.
"""

from __future__ import annotations

import msgspec

from gymq.api.agent import Finish, Generate, View
from gymq.errors import TRUNCATING, Fault
from gymq.runtime.affinity import Route
from gymq.wire.calls import Asked, CallKind, Generated, Opened, Reply, RequestParameters, Responded, Scored, Usage, encode
from gymq.wire.message import Conversation

from . import limits, retry_budget
from .agent_guard import AgentFailed, Decision
from .opening import opening_messages
from .record import call_record
from .step import Step
from .step_context import StepContext
from .tool_turn import MAX_PARALLEL_TOOLS

#: Questions that a hook may ask a model before it must come to an end.
ASKS = 16

#: Sampling fields that mean something only beside tools.
_TOOL_FIELDS = frozenset({"tool_choice", "parallel_tool_calls"})

_GENERATED = msgspec.msgpack.Decoder(Generated)
_OPENED = msgspec.msgpack.Decoder(Opened)
_RESPONDED = msgspec.msgpack.Decoder(Responded)
_SCORED = msgspec.msgpack.Decoder(Scored)


class Machine:
    """Advances one rollout by one step.

    Args:
        context: the rollout and its step.
    """

    def __init__(self, context: StepContext) -> None:
        self.context = context
        self.live, self.state = context.live, context.state
        self.config, self.spec, self.step = context.config, context.spec, context.step

    def advance(self, replies: list[Reply]) -> Step:
        """Take the replies of the pending calls (none at the start) and go on.

        Args:
            replies: one for each call of the step, in the calls' order.
        """
        try:
            if self.state.phase == "new":
                self._begin()
            elif self.state.phase == "tools":
                self._tool_results(replies)
            else:
                self._reply(replies[0])
        except AgentFailed as error:
            self.context.fail(Fault("agent", str(error)))
        return self._done()

    def due(self) -> Step | None:
        """End a rollout that has lasted too long, or send its calls again; None: it is not time yet."""
        state = self.state
        try:
            if limits.out_of_time(state, self.config, self.context.lasted):
                self._out_of_time()
            elif state.resume:
                self._resend()
            elif limits.overdue(self.context.waited):
                self._overdue()
            else:
                return None
        except AgentFailed as error:
            self.context.fail(Fault("agent", str(error)))
        return self._done()

    def abandon(self, fault: Fault, status: str = "failed") -> Step:
        """End the rollout now, whatever it was doing.

        Args:
            fault: the cause.
            status: its status, `failed` or `cancelled`.
        """
        self.state.started_at = self.state.started_at or self.context.now
        self.state.fault, self.state.status = fault, status
        self.context.end()
        return self.step

    def cancel(self, fault: Fault) -> Step:
        """End the rollout as cancelled, by way of `close` if the environment is to clean up.

        One that is closing already ends at once, as it was going to: its `close` is under way, and may never be answered.
        """
        state = self.state
        if state.phase == "closing":
            self.context.end()
        elif self.context.closes:
            state.fault, state.status, state.todo, state.running = fault, "cancelled", [], []
            self.step.drop = True
            self.context.close()
        else:
            return self.abandon(fault, "cancelled")
        return self._done()

    def _done(self) -> Step:
        self.state.lasted, self.state.counted = self.context.lasted, self.context.now
        self.step.due = limits.due(self.state, self.config, self.context.now, self.state.lasted)
        return self.step

    def not_yet(self) -> float:
        """Return the seconds until a rollout must be looked at again for which it was not time yet."""
        context = self.context
        return limits.due(self.state, self.config, context.now, context.lasted, context.waited) - context.now

    def _reply(self, reply: Reply) -> None:
        """Merge the reply of a call that was sent alone."""
        state = self.state
        phase, asking = state.phase, state.asking
        kind: CallKind = "ask" if asking else _KINDS[phase]
        answer = None
        if kind in ("generate", "ask") and reply.fault is None:
            answer = _GENERATED.decode(reply.value)
        name = self._judge() if asking else ""
        record = call_record(kind, self.live.version, state.queued, reply, name, answer, len(self.live.messages))
        self.step.calls.append(record)
        self.context.worked(reply)
        if reply.fault is not None:
            return self._failed(kind, reply.fault)
        state.tries = 0
        if kind == "generate" and self.context.routes.knows(f"model:{self.config.model}"):
            state.replica = reply.worker
        elif kind in _HOOKS:
            self.context.kept(getattr(self.spec, kind), reply)
        if answer is not None and asking:
            state.answer = answer.message
            state.asked.setdefault(name, Usage()).add(answer.usage)
            self.context.hook()
        elif answer is not None:
            self._generated(answer)
        elif phase == "opening":
            self._opened(_OPENED.decode(reply.value))
        elif phase == "responding":
            self._responded(_RESPONDED.decode(reply.value))
        elif phase == "verifying":
            self._scored(_SCORED.decode(reply.value))
        else:
            self.context.end()

    # Beginning.

    def _begin(self) -> None:
        self.state.started_at = self.context.now
        if self.spec.open.present:
            self._open()  # which says what stands before the task's messages
        else:
            self.context.append(self.live.task.encoded)
            self._plan(None)
            self._act()

    def _open(self) -> None:
        self.context.send("open", "opening", task=True, way=self.context.session(self.spec.open))

    def _opened(self, opened: Opened) -> None:
        self.context.opened = True
        self.context.remember(opened.state)
        self.context.append(opening_messages(self.live.task.encoded, opened.messages))
        self._plan(opened.tools)
        try:
            _ = self.live.declared
        except (TypeError, KeyError):
            return self.context.fail(Fault("environment", "open gave tools that are not in the form of chat completions"))
        self._act()

    def _plan(self, opened: bytes | None) -> None:
        task = self.live.task
        tools = opened if opened is not None else task.tools
        if tools is None:
            tools = msgspec.json.encode([tool.schema for tool in self.spec.tools])
        body = task.sampling
        if self.config.sampling:
            body = msgspec.json.encode(self.config.sampling | msgspec.json.decode(body))
        if tools == b"[]" and (b'"tool_choice"' in body or b'"parallel_tool_calls"' in body):
            # Servers refuse these where no tools are declared.
            kept = {key: value for key, value in msgspec.json.decode(body).items() if key not in _TOOL_FIELDS}
            body = msgspec.json.encode(kept)
        self.live.parameters = encode(RequestParameters(body, tools, self.context.agent.declares_tools))
        self.step.fields += ["q", self.live.parameters]

    # The agent decides.

    def _act(self) -> None:
        self._do(self.context.guard.act(self._view, self.context.append))

    def _view(self) -> View:
        state = self.state
        tools = [] if self.context.agent.declares_tools else self.live.tools
        return View(Conversation(self.live.messages), state.turns, state.finish, self.spec.respond.present, tools)

    def _do(self, action: Decision) -> None:
        if self.context.stale():
            return None
        if isinstance(action, Finish):
            return self.context.finish(action)
        if isinstance(action, list):
            self.state.todo = action
            return self._next_tools()
        generate = isinstance(action, Generate)
        limit = limits.reached(self.state, self.config, self.context.lasted, generate=generate)
        if limit:
            return self.context.truncate(limit)
        return self._generate() if generate else self.context.hook("responding")

    def _generate(self) -> None:
        mailbox = f"model:{self.config.model}"
        way: Route = ([], 0)
        if not self.state.tries:  # a call that failed at its replica may go to any
            way = self.context.routes.conversation(mailbox, self.state.replica, self.live.id.group, self.config.samples)
        self.context.send("generate", "generating", mailbox=mailbox, timeout=self.config.call_timeout, way=way)

    def _generated(self, answer: Generated) -> None:
        state = self.state
        state.turns += 1
        state.finish = answer.finish
        state.usage.add(answer.usage)
        state.model = answer.model
        if answer.tokens is not None and answer.tokens.versions:
            versions = [version for _, version in answer.tokens.versions]
            state.oldest = min(versions) if state.oldest < 0 else min(state.oldest, *versions)
            state.newest = max(state.newest, *versions)
        self.context.append([answer.message])
        self._act()

    # Tools.

    def _next_tools(self) -> None:
        state = self.state
        while state.todo:
            limit = limits.reached(state, self.config, self.context.lasted, generate=False)
            most = limits.tools_left(state, self.config, MAX_PARALLEL_TOOLS)
            if limit or most <= 0:
                self.context.append(self.context.turn.cut(limit or "max_tool_calls"))
                return self.context.truncate(limit or "max_tool_calls")
            self.context.turn.next(most)
            self._send_tools()
            if self.step.sends:
                return
            self.context.append(self.context.turn.results())
        self._act()

    def _send_tools(self) -> None:
        calls = self.context.turn.unanswered()
        for call in calls:
            way = self.context.session(self.context.turn.specs[call.name], len(calls))
            self.context.send("tool", "tools", name=call.name, arguments=call.arguments, way=way)

    def _tool_results(self, replies: list[Reply]) -> None:
        for reply in replies:
            self.context.worked(reply)
        faults, memories = self.context.turn.take(replies, self.context.kept)
        for memory in memories:
            self.context.remember(memory)
        if faults:
            # One that will not pass decides, if there is one.
            spec, fault = min(faults, key=lambda each: (not each[0].once, each[1].passes("tool")))
            if not spec.once and retry_budget.take(self.state, self.config, "tool", fault, self.context.now):
                return
            self.context.append(self.context.turn.results())
            return self.context.fail(retry_budget.last_fault(self.state, fault))
        self.state.tries = 0
        self.context.append(self.context.turn.results())
        self._next_tools()

    # Hooks that may ask a model.

    def _judge(self) -> str:
        assert self.state.ask is not None
        return self.state.ask.model or self.config.judge or self.config.model

    def _asked(self, ask: Asked) -> None:
        state = self.state
        state.asks += 1
        if state.asks > ASKS:
            return self.context.give_up(Fault(_BLAMED[state.phase], f"asked a model {ASKS} times and did not come to an end"))
        state.ask, state.answer = ask, None
        self._ask()

    def _ask(self) -> None:
        self.context.send("ask", self.state.phase, mailbox=f"model:{self._judge()}", timeout=self.config.call_timeout)

    def _responded(self, responded: Responded) -> None:
        self.context.remember(responded.state)
        if responded.ask is not None:
            return self._asked(responded.ask)
        self.context.hear_no_more()
        self.context.append(responded.messages)
        if responded.done:
            return self.context.finish(Finish())
        if not responded.messages:
            return self.context.fail(Fault("environment", "respond gave neither a message nor done=True"))
        self._act()

    def _scored(self, scored: Scored) -> None:
        if scored.ask is not None:
            return self._asked(scored.ask)
        self.state.score = scored
        self.context.close()

    # Faults and time.

    def _failed(self, kind: CallKind, fault: Fault) -> None:
        if kind == "close":
            return self.context.end()  # the rollout is scored; that cleaning up failed stands in the call's record
        if kind == "generate" and fault.kind in TRUNCATING:
            return self.context.truncate(fault.kind)
        if fault.kind in TRUNCATING or not retry_budget.take(self.state, self.config, kind, fault, self.context.now):
            self.context.give_up(retry_budget.last_fault(self.state, fault))

    def _resend(self) -> None:
        state = self.state
        if state.phase in _CONVERSATION and self.context.stale():
            return
        if state.phase == "opening":
            self._open()
        elif state.phase == "generating":
            self._generate()
        elif state.phase == "tools":
            self._send_tools()
        elif state.asking:
            self._ask()
        else:
            self.context.hook()

    def _out_of_time(self) -> None:
        """Give up the pending calls; the conversation so far is scored."""
        self.step.drop = True
        if self.state.phase == "tools":
            self.context.append(self.context.turn.cut("max_seconds"))
        self.context.hear_no_more()
        self.context.truncate("max_seconds")

    def _overdue(self) -> None:
        """Give up the pending calls, and send them again as after a fault that may pass."""
        state = self.state
        self.step.drop = True
        if state.phase == "closing":
            return self.context.end()
        fault = Fault("unavailable", "the call was pending for an hour, and workers that serve it were there")
        kind: CallKind = "ask" if state.asking else "tool" if state.phase == "tools" else _KINDS[state.phase]
        once = state.phase == "tools" and any(
            self.context.turn.specs[call.name].once for call in self.context.turn.unanswered()
        )
        if once or not retry_budget.take(state, self.config, kind, fault, self.context.now):
            self.context.give_up(retry_budget.last_fault(state, fault))


_KINDS: dict[str, CallKind] = {
    "opening": "open",
    "generating": "generate",
    "responding": "respond",
    "verifying": "verify",
    "closing": "close",
}

#: Phases in which tokens that are too old end the rollout; later only its reward is missing.
_CONVERSATION = frozenset({"generating", "tools", "responding"})

#: The kinds whose specs an environment has.
_HOOKS = frozenset({"open", "respond", "verify"})

#: The kind of fault of a hook that asks too often, by phase.
_BLAMED = {"responding": "environment", "verifying": "verifier"}
