"""The state machine of a rollout: from what came in to what is to be committed. It does no input or output.

    new ─▶ opening ─▶ generating ─▶ tools ─▶ generating ─▶ ... ─▶ responding ─▶ ... ─▶ verifying ─▶ closing ─▶ ended

The agent decides what comes after a message; this machine bounds it, sends the calls, keeps tool calls in order, and
sees to it that a rollout ends with a status whatever happens.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from gymq.agent import Agent, CallTool, Finish, Generate, Respond, View
from gymq.call import CallKind, Generated, Opened, Plan, Reply, Responded, Scored, ToolResult, encode
from gymq.environment import EnvironmentSpec, ToolSpec
from gymq.errors import TRUNCATING, Fault
from gymq.message import Conversation
from gymq.run import RunConfig

from .guard import AgentFailed, Decision, Guard
from .record import call_record, header
from .state import Live, Running
from .step import Step

#: Calls of one turn that run beside each other; the others follow. Lua's stack bounds how many one script can take.
TOGETHER = 1000

#: Faults of an isolated tool that tell of the program the model asked to run, not of us: the model is told.
_LIMITS = frozenset({"timeout", "killed", "memory"})

#: Sampling fields that mean something only beside tools.
_TOOL_FIELDS = frozenset({"tool_choice", "parallel_tool_calls"})

_GENERATED = msgspec.msgpack.Decoder(Generated)
_OPENED = msgspec.msgpack.Decoder(Opened)
_TOOL = msgspec.msgpack.Decoder(ToolResult)
_RESPONDED = msgspec.msgpack.Decoder(Responded)
_SCORED = msgspec.msgpack.Decoder(Scored)


class Machine:
    """Advances one rollout by one step.

    Args:
        live: the rollout; it is changed in place.
        config: its run.
        spec: its environment.
        agent: its agent.
    """

    def __init__(self, live: Live, config: RunConfig, spec: EnvironmentSpec, agent: Agent) -> None:
        self.live = live
        self.state = live.state
        self.config = config
        self.spec = spec
        self.agent = agent
        self.guard = Guard(agent, config.agent)
        self.step = Step([], [], [], [], [])
        self.now = time.time()
        self.opened = live.state.phase not in ("new", "opening")

    def advance(self, replies: list[Reply]) -> Step:
        """Take the replies of the pending calls (none at the start) and go on.

        Args:
            replies: one for each call of the step, in the calls' order.
        """
        try:
            self._advance(replies)
        except AgentFailed as error:
            self._fail(Fault("agent", str(error)))
        return self.step

    def _advance(self, replies: list[Reply]) -> None:
        state = self.state
        phase = state.phase
        if phase == "new":
            self._begin()
        elif phase == "tools":
            self._tool_results(replies)
        else:
            reply = replies[0]
            answer = None
            if phase == "generating" and reply.fault is None:
                answer = _GENERATED.decode(reply.value)
            self.step.records.append(call_record(_KINDS[phase], self.live.version, state.queued, reply, answer=answer))
            if reply.fault is not None:
                self._failed(phase, reply.fault)
            elif answer is not None:
                self._generated(answer)
            elif phase == "opening":
                self._opened(_OPENED.decode(reply.value))
            elif phase == "responding":
                self._responded(_RESPONDED.decode(reply.value))
            elif phase == "verifying":
                state.score = _SCORED.decode(reply.value)
                self._close()
            else:
                self._end()

    def abandon(self, fault: Fault, status: str = "failed") -> Step:
        """End the rollout now, whatever it was doing."""
        if not self.live.turns:
            self._append(self.live.task.turns)
        self.state.started_at = self.state.started_at or self.now
        self.state.fault, self.state.status = fault, status
        self._end()
        return self.step

    def cancel(self, fault: Fault) -> Step:
        """End the rollout as cancelled, by way of `close` if the environment is to clean up.

        One that is closing already ends at once, as it was going to: its `close` is under way, and may never be answered.
        """
        state = self.state
        if state.phase == "closing":
            self._end()
        elif self.spec.close.present and self.opened:
            state.fault, state.status, state.todo, state.running = fault, "cancelled", [], []
            self._close()
        else:
            self.abandon(fault, "cancelled")
        return self.step

    # Beginning.

    def _begin(self) -> None:
        self.state.started_at = self.now
        self._append(self.live.task.turns)
        if self.spec.open.present:
            self._send("open", "opening", task=True)
        else:
            self._plan(None)
            self._act()

    def _opened(self, opened: Opened) -> None:
        self.opened = True
        self._remember(opened.state)
        self._append(opened.turns)
        self._plan(opened.tools)
        try:
            _ = self.live.declared
        except (TypeError, KeyError):
            return self._fail(Fault("environment", "open gave tools that are not in the form of chat completions"))
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
        self.live.plan = encode(Plan(body, tools, self.agent.declares_tools))
        self.step.fields += ["q", self.live.plan]

    # The agent decides.

    def _act(self) -> None:
        self._do(self.guard.act(self._view, self._append))

    def _view(self) -> View:
        state = self.state
        tools = [] if self.agent.declares_tools else self.live.tools
        return View(Conversation(self.live.turns), state.turns, state.finish, self.spec.respond.present, tools)

    def _do(self, action: Decision) -> None:
        if isinstance(action, Generate):
            if self.state.turns >= self.config.max_turns:
                return self._finish(Finish(truncated=True, reason="max_turns"))
            return self._generate()
        if isinstance(action, list) and action:
            self.state.todo = action
            return self._next_tools()
        if isinstance(action, Respond):
            return self._send("respond", "responding", task=True)
        if isinstance(action, Finish):
            return self._finish(action)
        self._fail(Fault("agent", f"agent {self.config.agent!r} gave {action!r}, which is no action"))

    def _generate(self) -> None:
        self._send("generate", "generating", mailbox=f"model:{self.config.model}")

    def _generated(self, answer: Generated) -> None:
        state = self.state
        state.turns += 1
        state.finish = answer.finish
        state.usage.add(answer.usage)
        state.model = answer.model
        self._append([answer.message])
        self._act()

    # Tools: calls that may write run one after another, neighbours that only read run together.

    def _next_tools(self) -> None:
        state = self.state
        specs = {tool.name: tool for tool in self.spec.tools}
        while state.todo:
            batch = [state.todo[0]]
            if _reads(specs.get(batch[0].name)):
                while len(batch) < min(len(state.todo), TOGETHER) and _reads(specs.get(state.todo[len(batch)].name)):
                    batch.append(state.todo[len(batch)])
            state.todo = state.todo[len(batch) :]
            state.running = [Running(call, self._refuse(call, specs)) for call in batch]
            state.tool_calls += len(batch)
            for running in state.running:
                if running.content is None:
                    call = running.call
                    self._send("tool", "tools", name=call.name, arguments=call.arguments)
            if self.step.sends:
                return
            self._append([self._observe(running.call, running.content) for running in state.running])
        state.running = []
        self._act()

    def _refuse(self, call: CallTool, specs: dict[str, ToolSpec]) -> bytes | None:
        if call.name in specs and call.name in self.live.declared:
            return None
        known = ", ".join(sorted(self.live.declared & specs.keys())) or "none"
        return msgspec.json.encode(f"Error: there is no tool {call.name!r}. Tools: {known}.")

    def _tool_results(self, replies: list[Reply]) -> None:
        left = iter(replies)
        specs = {tool.name: tool for tool in self.spec.tools}
        turns: list[bytes] = []
        for running in self.state.running:
            content = running.content
            if content is None:
                reply = next(left)
                name = running.call.name
                self.step.records.append(call_record("tool", self.live.version, self.state.queued, reply, name))
                if reply.fault is None:
                    result = _TOOL.decode(reply.value)
                    content = result.content
                    if result.state is not None and not specs[name].read_only:
                        self._remember(result.state)
                elif specs[name].isolated and reply.fault.kind in _LIMITS:
                    content = msgspec.json.encode(f"Error: {reply.fault.message}")
                else:
                    self._append(turns)
                    return self._fail(reply.fault)
            turns.append(self._observe(running.call, content))
        self._append(turns)
        self._next_tools()

    def _observe(self, call: CallTool, content: bytes | None) -> bytes:
        return self.guard.observe(call, msgspec.json.decode(content or b'""'))

    # The environment speaks.

    def _responded(self, responded: Responded) -> None:
        self._remember(responded.state)
        self._append(responded.turns)
        if responded.done:
            return self._finish(Finish())
        if not responded.turns:
            return self._fail(Fault("environment", "respond gave neither a message nor done=True"))
        self._act()

    # Ending.

    def _finish(self, finish: Finish) -> None:
        self.state.status = "truncated" if finish.truncated else "completed"
        self.state.stop = finish.reason
        if self.spec.verify.present:
            self._send("verify", "verifying", task=True)
        else:
            self._close()

    def _failed(self, phase: str, fault: Fault) -> None:
        if phase == "generating" and fault.kind in TRUNCATING:
            return self._finish(Finish(truncated=True, reason=fault.kind))
        if phase == "closing":
            return self._end()  # the rollout is scored; that cleaning up failed stands in the call's record
        self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        self.state.fault, self.state.status = fault, "failed"
        self._close()

    def _close(self) -> None:
        if self.spec.close.present and self.opened:
            self._send("close", "closing", task=True)
        else:
            self._end()

    def _end(self) -> None:
        run, row, _ = self.live.place
        samples = self.config.samples
        self.step.sends = []
        self.step.final = [run, row, samples, self.state.status, header(self.live, self.config, self.now)]

    # Small change.

    def _append(self, turns: list[bytes]) -> None:
        self.live.turns += turns
        self.live.weight += sum(map(len, turns))
        self.step.turns += turns
        self.state.length = len(self.live.turns)

    def _remember(self, memory: bytes | None) -> None:
        if memory is not None:
            self.live.memory = memory
            self.step.fields += ["e", memory]

    def _send(self, kind: CallKind, phase: str, **what: Any) -> None:
        self.state.phase, self.state.queued = phase, self.now
        self.step.send(self.live, kind, born=self.config.created, **what)


_KINDS = {
    "opening": "open",
    "generating": "generate",
    "responding": "respond",
    "verifying": "verify",
    "closing": "close",
}


def _reads(tool: ToolSpec | None) -> bool:
    # An unknown tool is answered on the spot and writes nothing.
    return tool is None or tool.read_only
