"""The context of one step of a rollout: it adds messages, sends calls, and ends the rollout."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from gymq.api.agent import Agent, Finish
from gymq.api.environment import EnvironmentSpec, HookSpec, ToolSpec
from gymq.errors import Fault
from gymq.runtime.affinity import AffinityRouter, Route
from gymq.runtime.service_times import ServiceTimes
from gymq.store.runs import RunConfig
from gymq.store.scripts import RolloutEnd
from gymq.wire.calls import CallKind, Reply
from gymq.wire.record import NO_VERIFIER

from .agent_guard import AgentGuard
from .record import counts, header
from .state import LiveRollout
from .step import Step
from .tool_turn import ToolTurn

#: Routes of a deployment without private mailboxes.
NO_ROUTES = AffinityRouter()

#: Closing goes where the live session is, whether `close` asks for it or not: it is disposed of there.
_LIVE = HookSpec(present=True, session=True)


class StepContext:
    """A rollout in one step, and what the step has changed so far.

    Args:
        live: the rollout; it is changed in place.
        config: its run.
        spec: its environment.
        agent: its agent.
        current: the policy version that its model is to sample with; 0 unless the run bounds staleness.
        routes: the workers that have private mailboxes.
        times: the clock, and since when mailboxes have been served; None: this process's clock, and they always were.

    Attributes:
        step: what is to be committed.
        now: when the step began, seconds since the epoch.
        opened: whether `open` has succeeded, or the environment has none.
    """

    def __init__(
        self,
        live: LiveRollout,
        config: RunConfig,
        spec: EnvironmentSpec,
        agent: Agent,
        current: int = 0,
        routes: AffinityRouter = NO_ROUTES,
        times: ServiceTimes | None = None,
    ) -> None:
        self.live = live
        self.state = live.state
        self.config = config
        self.spec = spec
        self.agent = agent
        self.current = current
        self.routes = routes
        self.guard = AgentGuard(agent, config.agent)
        self.step = Step(config, [], [], [], [])
        self.now = time.time() if times is None else times.now()
        self._times = times
        # Before the step changes what the rollout waits for.
        self._served_then = self._served() if config.max_seconds else 0.0
        self.opened = live.state.phase not in ("new", "opening")

    @cached_property
    def turn(self) -> ToolTurn:
        """The tool calls of this turn."""
        return ToolTurn(self.live, self.spec, self.guard, self.step)

    def _served(self) -> float:
        """Return since when the mailbox in which the pending calls are, and the agents', have been served."""
        return 0.0 if self._times is None else self._times.since("agent", *self._awaited())

    def _awaited(self) -> list[str]:
        """Return the mailbox in which the pending calls are, if any are."""
        state = self.state
        if state.phase == "new" or state.resume:
            return []
        if state.ask is not None and state.answer is None:
            return [f"model:{state.ask.model or self.config.judge or self.config.model}"]
        return [f"model:{self.config.model}" if state.phase == "generating" else f"resource:{self.live.task.environment}"]

    @property
    def lasted(self) -> float:
        """Seconds that the rollout has lasted, without those in which what it waited for was not served; 0 without a limit."""
        state = self.state
        if not self.config.max_seconds or not state.counted:
            return 0.0
        return state.lasted + max(0.0, self.now - max(state.counted, self._served_then))

    @property
    def waited(self) -> float:
        """Seconds that the pending calls have waited while their mailbox was served; the step has sent none yet."""
        return max(0.0, self.now - max(self.state.queued, self._served()))

    def append(self, messages: list[bytes]) -> None:
        """Append encoded messages to the conversation."""
        self.live.messages += messages
        self.live.weight += sum(map(len, messages))
        self.step.messages += messages
        self.state.length = len(self.live.messages)

    def remember(self, environment_state: bytes | None) -> None:
        """Store the environment's new state, msgpack; None: it is unchanged."""
        if environment_state is not None:
            self.live.environment_state = environment_state
            self.step.fields += ["e", environment_state]

    def send(self, kind: CallKind, phase: str, **fields: Any) -> None:
        """Send a call, and enter the phase in which its reply is awaited.

        Args:
            kind: the call's kind.
            phase: the phase.
            fields: as of `Step.send`.
        """
        self.state.phase, self.state.queued, self.state.resume = phase, self.now, 0.0
        self.step.send(self.live, kind, born=self.config.created, **fields)

    def worked(self, reply: Reply) -> None:
        """Add a call's time to the rollout's working seconds, unless it belongs to scoring or closing."""
        if self.state.phase not in ("verifying", "closing"):
            self.state.working += max(0.0, reply.finished - reply.started - reply.waited)

    def hook(self, phase: str = "") -> None:
        """Call `respond` or `verify`, again if it has asked a model."""
        phase = phase or self.state.phase
        if phase == "verifying":
            self.send("verify", phase, task=True, way=self.session(self.spec.verify))
        else:
            self.send("respond", phase, task=True, way=self.session(self.spec.respond))

    def session(self, asks: HookSpec | ToolSpec, calls: int = 1) -> Route:
        """Return the route to the rollout's live session, empty for a hook or tool without one.

        Args:
            asks: the hook or tool.
            calls: how many calls take the route together.
        """
        if not asks.session:
            return [], 0
        return self.routes.session(f"resource:{self.live.task.environment}", self.state.keeper, self.live.address, calls)

    def kept(self, asks: HookSpec | ToolSpec, reply: Reply) -> None:
        """Note the worker that has the session.

        Args:
            asks: the hook or tool that was called.
            reply: its reply.
        """
        if asks.session and reply.fault is None:
            self.state.keeper = reply.worker

    @property
    def closes(self) -> bool:
        """True if the environment is to clean up."""
        return self.opened and (self.spec.close.present or bool(self.state.keeper))

    def hear_no_more(self) -> None:
        """Drop the question of a hook to a model, and its answer."""
        self.state.asks, self.state.ask, self.state.answer = 0, None, None

    # The end.

    def give_up(self, fault: Fault) -> None:
        """Fail the rollout with its last fault; while it is scored, only the reward is missing.

        But a judge that would refuse any question is a mistake of the command's, as with the rollout's own model.
        """
        if self.state.phase == "verifying" and fault.kind != "model_access":
            self.state.no_reward = f"{fault.kind}: {fault.message}"
            self.close()
        else:
            self.fail(fault)

    def truncate(self, limit: str) -> None:
        """Finish the conversation as truncated by a limit."""
        self.finish(Finish(truncated=True, reason=limit))

    def stale(self) -> bool:
        """End the rollout as cancelled if its tokens are too old; returns whether they are. It is not scored."""
        state, most = self.state, self.config.max_staleness
        if most is None or state.oldest < 0 or self.current - state.oldest <= most:
            return False
        versions = f"version {state.oldest}, and the model is at {self.current}"
        state.fault = Fault("stale", f"its oldest token was sampled with {versions}; max_staleness is {most}")
        state.status, state.stop, state.todo, state.running = "cancelled", "stale", [], []
        self.step.drop = True
        self.close()
        return True

    def finish(self, finish: Finish) -> None:
        """Finish the conversation and have it scored, if the environment has a verifier."""
        if self.stale():
            return
        state = self.state
        state.status = "truncated" if finish.truncated else "completed"
        state.stop = finish.reason
        if not self.spec.verify.present:
            state.no_reward = NO_VERIFIER
            self.close()
        elif state.phase == "opening" and not self.opened:
            state.no_reward = "timeout: the environment was not opened in time"
            self.close()
        else:
            state.tries = 0
            self.hook("verifying")

    def fail(self, fault: Fault) -> None:
        """End the rollout as failed."""
        self.state.fault, self.state.status = fault, "failed"
        self.close()

    def close(self) -> None:
        """Have the environment clean up, if it does; else end the rollout."""
        self.hear_no_more()
        if self.closes:
            self.send("close", "closing", task=True, way=self.session(_LIVE))
        else:
            self.end()

    def end(self) -> None:
        """Make this step the final one: the rollout's record is written with it."""
        run, row, _ = self.live.id
        samples = self.config.samples
        if not self.live.messages:  # it was not opened
            self.append(self.live.task.encoded)
        self.step.sends = []
        used = counts(self.config.model, self.state)
        self.step.final = RolloutEnd(run, row, samples, self.state.status, header(self.live, self.config, self.now), used)
