"""What all steps of a rollout share: how messages are added and calls are sent, and how a rollout comes to its end."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from gymq.api.agent import Agent, Finish
from gymq.api.environment import EnvironmentSpec, HookSpec, ToolSpec
from gymq.errors import Fault
from gymq.runtime.affinity import AffinityRouter, Route
from gymq.store.runs import RunConfig
from gymq.store.scripts import RolloutEnd
from gymq.wire.calls import CallKind, Reply

from .agent_guard import AgentGuard
from .record import counts, header
from .state import LiveRollout
from .step import Step
from .tool_turn import ToolTurn

#: Nobody has a private mailbox.
NOBODY = AffinityRouter()

#: Closing goes where the live session is, whether `close` asks for it or not: it is disposed of there.
_LIVE = HookSpec(present=True, session=True)


class StepContext:
    """A rollout in one step.

    Args:
        live: the rollout; it is changed in place.
        config: its run.
        spec: its environment.
        agent: its agent.
        current: the policy version that its model is to sample with; only asked for if the run bounds staleness.
        routes: who has private mailboxes.
    """

    def __init__(
        self,
        live: LiveRollout,
        config: RunConfig,
        spec: EnvironmentSpec,
        agent: Agent,
        current: int = 0,
        routes: AffinityRouter = NOBODY,
    ) -> None:
        self.live = live
        self.state = live.state
        self.config = config
        self.spec = spec
        self.agent = agent
        self.current = current
        self.routes = routes
        self.guard = AgentGuard(agent, config.agent)
        self.step = Step([], [], [], [])
        self.now = time.time()
        self.opened = live.state.phase not in ("new", "opening")

    @cached_property
    def turn(self) -> ToolTurn:
        """The tool calls of this turn."""
        return ToolTurn(self.live, self.spec, self.guard, self.step)

    def _append(self, messages: list[bytes]) -> None:
        self.live.messages += messages
        self.live.weight += sum(map(len, messages))
        self.step.messages += messages
        self.state.length = len(self.live.messages)

    def _remember(self, memory: bytes | None) -> None:
        if memory is not None:
            self.live.environment_state = memory
            self.step.fields += ["e", memory]

    def _send(self, kind: CallKind, phase: str, **what: Any) -> None:
        self.state.phase, self.state.queued, self.state.resume = phase, self.now, 0.0
        self.step.send(self.live, kind, born=self.config.created, **what)

    def _worked(self, reply: Reply) -> None:
        if self.state.phase not in ("verifying", "closing"):
            self.state.working += max(0.0, reply.finished - reply.started - reply.waited)

    def _hook(self, phase: str = "") -> None:
        """Call `respond` or `verify`, again if it has asked a model."""
        phase = phase or self.state.phase
        if phase == "verifying":
            self._send("verify", phase, task=True, way=self._session(self.spec.verify))
        else:
            self._send("respond", phase, task=True, way=self._session(self.spec.respond))

    def _session(self, asks: HookSpec | ToolSpec, calls: int = 1) -> Route:
        """The way to the rollout's live session, for a hook or tool that asks for it."""
        if not asks.session:
            return [], 0
        return self.routes.session(f"resource:{self.live.task.environment}", self.state.keeper, self.live.rid, calls)

    def _kept(self, asks: HookSpec | ToolSpec, reply: Reply) -> None:
        """Note who has the session."""
        if asks.session and reply.fault is None:
            self.state.keeper = reply.worker

    @property
    def closes(self) -> bool:
        """Whether the environment is to clean up."""
        return self.opened and (self.spec.close.present or bool(self.state.keeper))

    def _hear_no_more(self) -> None:
        self.state.asks, self.state.ask, self.state.answer = 0, None, None

    # The end.

    def _give_up(self, fault: Fault) -> None:
        """A fault that is the last one: it fails the rollout, unless only the reward is missing."""
        if self.state.phase == "verifying":
            self.state.no_reward = f"{fault.kind}: {fault.message}"
            self._close()
        else:
            self._fail(fault)

    def _truncate(self, limit: str) -> None:
        self._finish(Finish(truncated=True, reason=limit))

    def _stale(self) -> bool:
        """End the rollout if its tokens are too old to be used: nothing more is spent on it, a verifier neither."""
        state, most = self.state, self.config.max_staleness
        if most is None or state.oldest < 0 or self.current - state.oldest <= most:
            return False
        versions = f"version {state.oldest}, and the model is at {self.current}"
        state.fault = Fault("stale", f"its oldest token was sampled with {versions}; max_staleness is {most}")
        state.status, state.stop, state.todo, state.running = "cancelled", "stale", [], []
        self.step.drop = True
        self._close()
        return True

    def _finish(self, finish: Finish) -> None:
        if self._stale():
            return
        state = self.state
        state.status = "truncated" if finish.truncated else "completed"
        state.stop = finish.reason
        if not self.spec.verify.present:
            state.no_reward = "the environment has no verifier"
            self._close()
        elif state.phase == "opening" and not self.opened:
            state.no_reward = "the environment was not opened in time"
            self._close()
        else:
            state.tries = 0
            self._hook("verifying")

    def _fail(self, fault: Fault) -> None:
        self.state.fault, self.state.status = fault, "failed"
        self._close()

    def _close(self) -> None:
        self._hear_no_more()
        if self.closes:
            self._send("close", "closing", task=True, way=self._session(_LIVE))
        else:
            self._end()

    def _end(self) -> None:
        run, row, _ = self.live.id
        samples = self.config.samples
        self.step.sends = []
        used = counts(self.config.model, self.state)
        self.step.final = RolloutEnd(run, row, samples, self.state.status, header(self.live, self.config, self.now), used)
