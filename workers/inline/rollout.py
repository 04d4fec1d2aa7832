"""One rollout in this process, advanced step by step through the machine of the agent role."""

from __future__ import annotations

from gymq.api.agent import Agent
from gymq.api.environment import EnvironmentSpec
from gymq.errors import Fault
from gymq.runtime.affinity import AffinityRouter
from gymq.store.runs import RunConfig
from gymq.wire.calls import Call, Reply, decode_call
from gymq.wire.record import encode_call
from gymq.wire.task import Task, encode_task

from ..agent.machine import Machine
from ..agent.state import LiveRollout, State, decode_state
from ..agent.step import Step
from ..agent.step_context import NO_ROUTES, StepContext


class InlineRollout:
    """A rollout whose state is encoded and decoded between its steps, as if another worker took it over after each.

    Args:
        rid: its id, `run.row.sample`.
        task: its task.
        config: its run.
        spec: its environment.
        agent: its agent.
        routes: the workers that have private mailboxes.

    Attributes:
        live: the rollout as an agent worker holds it.
        records: the records of the calls that were answered, encoded.
        current: the policy version that the model is to sample with.
        final: the step that ended it; None: it goes on.
    """

    def __init__(
        self,
        rid: str,
        task: Task,
        config: RunConfig,
        spec: EnvironmentSpec,
        agent: Agent,
        routes: AffinityRouter = NO_ROUTES,
    ) -> None:
        self.live = LiveRollout(rid, 0, State(), [], task, encode_task(task))
        self.config = config
        self.spec = spec
        self.agent = agent
        self.routes = routes
        self.current = 0
        self.records: list[bytes] = []
        self.final: Step | None = None

    @property
    def state(self) -> State:
        """Its state after the last step."""
        return self.live.state

    def go(self, *replies: Reply) -> Step:
        """Take one step.

        Args:
            replies: one for each pending call, in the calls' order.
        """
        return self._stored(self._machine().advance(list(replies)))

    def due(self, later: float = 0.0) -> Step | None:
        """Take the step that time brings, if any.

        Args:
            later: seconds from now, which are passed over.
        """
        machine = self._machine()
        machine.context.now += later
        step = machine.due()
        return None if step is None else self._stored(step)

    def abandon(self, fault: Fault, status: str = "failed") -> Step:
        """End the rollout, whatever it was doing.

        Args:
            fault: the cause.
            status: how it ends.
        """
        return self._stored(self._machine().abandon(fault, status))

    def cancel(self, fault: Fault) -> Step:
        """End the rollout as cancelled, by way of `close` if that is due."""
        return self._stored(self._machine().cancel(fault))

    def record(self) -> bytes:
        """Return the record of a rollout that has ended, as `commit.lua` joins it."""
        assert self.final is not None and self.final.final is not None
        messages, calls = b",".join(self.live.messages), b",".join(self.records)
        return b'%b,"seq":1,"messages":[%b],"calls":[%b]}' % (self.final.final.header, messages, calls)

    def _machine(self) -> Machine:
        return Machine(StepContext(self.live, self.config, self.spec, self.agent, self.current, self.routes))

    def _stored(self, step: Step) -> Step:
        self.records += map(encode_call, step.calls)
        if step.final:
            self.final = step
            return step
        step.commit(self.live, b"", b"", False)
        old = self.live
        fields: dict[str | bytes, bytes] = dict(zip(step.fields[::2], step.fields[1::2], strict=True))  # type: ignore[arg-type]
        self.live = LiveRollout(
            old.rid, old.version + 1, decode_state(fields["s"]), list(old.messages), old.task, old.task_data,
            fields.get("e", old.environment_state), fields.get("q", old.parameters),
        )  # fmt: skip
        return step


def calls(step: Step) -> list[tuple[str, Call]]:
    """Return what a step sends: each call with its mailbox."""
    return [(send.mailbox, decode_call(send.body)) for send in step.sends]
