"""Metrics of a process, counted from its events; `docs/observability.md` says what each means."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gymq.observe import events
from gymq.observe.events.event import E
from gymq.observe.series import Count, Distribution, Level

#: Upper bounds of a call's times in seconds: from a tool that returns at once to an answer of an hour.
CALL_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)

#: Upper bounds of a rollout's time in seconds: to a day.
ROLLOUT_BOUNDS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)

#: Upper bounds of rewards: most environments give 0 to 1.
REWARD_BOUNDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: Upper bounds of the times of a commit or of loading weights, seconds.
LOAD_BOUNDS = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)

#: Roles that a dead worker's name may begin with: whoever may write to Redis can make up others.
_ROLES = frozenset({"agent", "model", "resource", "executor"})


class WorkerGauges(msgspec.Struct):
    """A worker's load now.

    Args:
        role: its role.
        held: messages in hand.
        capacity: messages that it holds at most.
        taking: whether it takes mail.
        load: figures of a backend that hosts its model, by name.
        policy_version: of its weights; None: it has none.
    """

    role: str
    held: int
    capacity: int
    taking: bool
    load: dict[str, float] = {}
    policy_version: int | None = None


class ProcessMetrics:
    """The metrics of this process; counts events from the moment it is made until it is closed.

    Args:
        shards: the number of shards that it talks to.
    """

    def __init__(self, shards: int) -> None:
        self.registry = CollectorRegistry()
        self.info = self._level("gymq_worker_info", "What the process is", "role", "serves", "version")
        self.mail_taken = self._count("gymq_mail_taken", "Messages taken", "role")
        self.redelivered = self._count("gymq_mail_redelivered", "Messages taken that were handed back before", "role")
        self.refused = self._count("gymq_mail_refused", "Messages that are no mail", "role")
        self.lapses = self._count("gymq_lapses", "Times that this worker was declared dead", "role")
        self.deaths = self._count("gymq_deaths", "Dead workers whose mail this worker handed back", "role")
        self.handed_back = self._count("gymq_mail_handed_back", "Messages of dead workers that were handed back", "role")
        self.outages = self._count("gymq_outages", "Outages of Redis", "shard")
        self.outage_seconds = self._count("gymq_outage_seconds", "Time of the outages that have ended", "shard")
        self.redis_up = self._level("gymq_redis_up", "0 while there is an outage, else 1", "shard")
        self.quarantines = self._count("gymq_quarantines", "Quarantines started", "role")
        self.dead_letters = self._count("gymq_dead_letters", "Dead letters written", "role", "kind")
        self.calls = self._count("gymq_calls", "Calls answered", "role", "kind", "outcome")
        stages = ("role", "kind", "stage")
        self.call_seconds = self._distribution("gymq_call_seconds", "Time of answered calls, by stage", CALL_BOUNDS, *stages)
        self.input_tokens = self._count("gymq_input_tokens", "Tokens of prompts", "kind")
        self.output_tokens = self._count("gymq_output_tokens", "Tokens of answers", "kind")
        self.cached_tokens = self._count("gymq_cached_tokens", "Tokens of prompts that the server had cached", "kind")
        self.requests = self._count("gymq_model_requests", "HTTP requests to model servers; status 0: no answer", "status")
        self.rate = self._level("gymq_rate_limit", "What a limit in force grants a second; 0: it is not in force", "limit")
        self.rate_waiting = self._level("gymq_rate_limit_waiting", "Requests of this process that wait for it", "limit")
        self.weights = self._count("gymq_weights_loads", "Weights loaded", "outcome")
        self.weights_seconds = self._distribution("gymq_weights_load_seconds", "Time of loading weights", LOAD_BOUNDS)
        self.steps = self._count("gymq_steps", "Steps of rollouts", "outcome")
        self.admitted = self._count("gymq_rollouts_admitted", "Rollouts started")
        self.rollouts = self._count("gymq_rollouts", "Rollouts ended", "environment", "status")
        times = "Time from a rollout's first step to its last"
        self.rollout_seconds = self._distribution("gymq_rollout_seconds", times, ROLLOUT_BOUNDS, "environment")
        self.reward = self._distribution("gymq_rollout_reward", "Rewards", REWARD_BOUNDS, "environment")
        self.no_reward = self._count("gymq_rollouts_without_reward", "Rollouts ended without a reward", "environment")
        self.retries = self._count("gymq_call_retries", "Calls that rollouts sent again after a fault", "kind", "fault")
        self.stored = self._count("gymq_sink_rollouts", "Rollouts that a sink made durable")
        self.commit_seconds = self._distribution("gymq_sink_commit_seconds", "Time of making a batch durable", LOAD_BOUNDS)
        for shard in range(shards):
            self.redis_up.set(str(shard), to=1)
        self._subscribed: list[Callable[[Any], None]] = []
        self._subscribe()

    def watch(self, gauges: Callable[[], WorkerGauges]) -> None:
        """Ask a worker for its gauges at each look.

        Args:
            gauges: returns them; called from another thread.
        """
        self.registry.register(_WorkerCollector(gauges))

    def close(self) -> None:
        """Count no more."""
        for count in self._subscribed:
            events.unsubscribe(count)

    def _count(self, name: str, told: str, *labels: str) -> Count:
        made = Count(name, told, labels)
        self.registry.register(made)
        return made

    def _level(self, name: str, told: str, *labels: str) -> Level:
        made = Level(name, told, labels)
        self.registry.register(made)
        return made

    def _distribution(self, name: str, told: str, bounds: tuple[float, ...], *labels: str) -> Distribution:
        made = Distribution(name, told, bounds, labels)
        self.registry.register(made)
        return made

    def _on(self, kind: type[E], count: Callable[[E], None]) -> None:
        self._subscribed.append(count)
        events.subscribe(kind, count)

    def _subscribe(self) -> None:
        self._on(events.CallFinished, self._call_finished)
        self._on(events.RolloutFinished, self._rollout_finished)
        self._on(events.StepCommitted, lambda event: self.steps.add("applied"))
        self._on(events.StepRejected, lambda event: self.steps.add(event.why))
        self._on(events.Admitted, lambda event: self.admitted.add(amount=event.rollouts))
        self._on(events.CallRetried, lambda event: self.retries.add(event.kind, event.fault))
        self._on(events.WorkerReady, self._worker_ready)
        self._on(events.MailTaken, self._mail_taken)
        self._on(events.MailRefused, lambda event: self.refused.add(event.role))
        self._on(events.Lapsed, lambda event: self.lapses.add(event.role))
        self._on(events.HandedBack, self._mail_handed_back)
        self._on(events.OutageBegan, self._outage_began)
        self._on(events.OutageEnded, self._outage_ended)
        self._on(events.QuarantineStarted, lambda event: self.quarantines.add(event.role))
        self._on(events.DeadLettered, lambda event: self.dead_letters.add(event.role, event.kind))
        self._on(events.ModelRequested, lambda event: self.requests.add(str(event.status)))
        self._on(events.LimitInForce, self._limit_in_force)
        self._on(events.LimitLifted, self._limit_lifted)
        self._on(events.WeightsLoaded, self._weights_loaded)
        self._on(events.WeightsFailed, lambda event: self.weights.add("failed"))
        self._on(events.RolloutsStored, self._rollouts_stored)

    def _call_finished(self, event: events.CallFinished) -> None:
        role, kind = event.role, event.kind
        self.calls.add(role, kind, event.outcome)
        seconds = self.call_seconds
        seconds.observe(role, kind, "queue", value=max(0.0, event.started - event.queued))
        seconds.observe(role, kind, "work", value=max(0.0, event.finished - event.started - event.waited))
        if event.waited:
            seconds.observe(role, kind, "limit", value=event.waited)
        if (usage := event.usage) is not None:
            self.input_tokens.add(kind, amount=usage.input_tokens)
            self.output_tokens.add(kind, amount=usage.output_tokens)
            self.cached_tokens.add(kind, amount=usage.cached_tokens)

    def _rollout_finished(self, event: events.RolloutFinished) -> None:
        environment = event.environment
        self.rollouts.add(environment, event.status)
        self.rollout_seconds.observe(environment, value=max(0.0, event.finished_at - event.started_at))
        if event.reward is None:
            self.no_reward.add(environment)
        else:
            self.reward.observe(environment, value=event.reward)

    def _worker_ready(self, event: events.WorkerReady) -> None:
        self.info.set(event.role, ",".join(event.serves), version("gymq"), to=1)

    def _mail_taken(self, event: events.MailTaken) -> None:
        self.mail_taken.add(event.role, amount=event.messages)
        if event.redelivered:
            self.redelivered.add(event.role, amount=event.redelivered)

    def _mail_handed_back(self, event: events.HandedBack) -> None:
        role = event.role if event.role in _ROLES else ""
        self.deaths.add(role)
        self.handed_back.add(role, amount=event.messages)

    def _outage_began(self, event: events.OutageBegan) -> None:
        self.outages.add(str(event.shard))
        self.redis_up.set(str(event.shard), to=0)

    def _outage_ended(self, event: events.OutageEnded) -> None:
        self.outage_seconds.add(str(event.shard), amount=event.seconds)
        self.redis_up.set(str(event.shard), to=1)

    def _limit_in_force(self, event: events.LimitInForce) -> None:
        self.rate.set(event.limit, to=event.rate)
        self.rate_waiting.set(event.limit, to=event.waiting)

    def _limit_lifted(self, event: events.LimitLifted) -> None:
        self.rate.set(event.limit, to=0)
        self.rate_waiting.set(event.limit, to=0)

    def _weights_loaded(self, event: events.WeightsLoaded) -> None:
        self.weights.add("ok")
        self.weights_seconds.observe(value=event.seconds)

    def _rollouts_stored(self, event: events.RolloutsStored) -> None:
        self.stored.add(amount=event.rollouts)
        self.commit_seconds.observe(value=event.seconds)


class _WorkerCollector(Collector):
    """Makes metrics of a worker's gauges at each look."""

    def __init__(self, gauges: Callable[[], WorkerGauges]) -> None:
        self._gauges = gauges

    def describe(self) -> list[Metric]:
        """Return nothing: a registry would collect once to find the names."""
        return []

    def collect(self) -> list[Metric]:
        """Return the families."""
        now = self._gauges()
        families: list[Metric] = []
        for name, told, value in (
            ("gymq_worker_ready", "1: it takes mail", float(now.taking)),
            ("gymq_worker_held", "Messages in hand", now.held),
            ("gymq_worker_capacity", "Messages that it holds at most", now.capacity),
        ):
            family = GaugeMetricFamily(name, told, labels=("role",))
            family.add_metric((now.role,), value)
            families.append(family)
        if now.policy_version is not None:
            families.append(GaugeMetricFamily("gymq_policy_version", "Policy version of its weights", now.policy_version))
        if now.load:
            load = GaugeMetricFamily("gymq_backend_load", "Figures of the backend", labels=("figure",))
            for figure, value in now.load.items():
                load.add_metric((figure,), value)
            families.append(load)
        return families
