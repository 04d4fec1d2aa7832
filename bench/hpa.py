"""The replicas that KEDA and the Kubernetes autoscaler want of a ScaledObject now, in a few lines.

KEDA reads each trigger's number; the autoscaler takes, of all triggers, the most replicas that one asks for:
`ceil(ready x number / target)`, unless the two are within a tenth of each other. The policies bound how fast they grow, and
they shrink to no fewer than was wanted at any time within the stabilization window.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

import msgspec
import yaml

#: Relative difference from the target that changes nothing: Kubernetes' default.
TOLERANCE = 0.1


class Policy(msgspec.Struct, rename="camel"):
    """How much may be added, or removed, in a time: `value` of Pods or Percent in `period_seconds`."""

    type: str
    value: int
    period_seconds: float


class Direction(msgspec.Struct, rename="camel"):
    """One direction of scaling: its window in seconds, and its policies, of which the most generous counts."""

    stabilization_window_seconds: float = 0
    policies: list[Policy] = []


class Behavior(msgspec.Struct, rename="camel"):
    """Both directions."""

    scale_up: Direction
    scale_down: Direction


class _Hpa(msgspec.Struct, rename="camel"):
    behavior: Behavior


class _Advanced(msgspec.Struct, rename="camel"):
    horizontal_pod_autoscaler_config: _Hpa


class Trigger(msgspec.Struct, rename="camel"):
    """A number to scale by, read by KEDA's scaler `prometheus`."""

    type: str
    metric_type: str
    metadata: dict[str, str]

    @property
    def query(self) -> str:
        """The expression that gives it."""
        return self.metadata["query"]

    @property
    def target(self) -> float:
        """The number at which replicas stay as many as they are."""
        return float(self.metadata["threshold"])


class _Target(msgspec.Struct):
    name: str


class ScaledObject(msgspec.Struct, rename="camel"):
    """The `spec` of a ScaledObject, as far as it is played here; times are seconds."""

    scale_target_ref: _Target
    polling_interval: float
    min_replica_count: int
    max_replica_count: int
    advanced: _Advanced
    triggers: list[Trigger]

    @property
    def role(self) -> str:
        """The Deployment, which is named after its role."""
        return self.scale_target_ref.name

    @property
    def behavior(self) -> Behavior:
        """How fast it may grow and shrink."""
        return self.advanced.horizontal_pod_autoscaler_config.behavior


def scaled_objects(path: Path) -> dict[str, ScaledObject]:
    """Read the ScaledObjects of a file, by role."""
    some = [msgspec.convert(each["spec"], ScaledObject) for each in yaml.safe_load_all(path.read_text())]
    return {each.role: each for each in some}


class Autoscaler:
    """The autoscaler of one Deployment.

    Args:
        scaled: what it is told.
        speed: how many times faster than real its windows and periods pass.
    """

    def __init__(self, scaled: ScaledObject, speed: float = 1.0) -> None:
        self._scaled = scaled
        self._speed = speed
        self._wanted: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def decide(self, now: float, replicas: int, ready: int, numbers: list[float]) -> int:
        """Return how many replicas there are to be.

        Args:
            now: the time, seconds.
            replicas: how many there are.
            ready: how many of them work.
            numbers: the triggers' numbers, in order.
        """
        wanted = max(
            self._by_trigger(trigger, replicas, ready, number)
            for trigger, number in zip(self._scaled.triggers, numbers, strict=True)
        )
        wanted = min(max(wanted, self._scaled.min_replica_count), self._scaled.max_replica_count)
        behavior = self._scaled.behavior
        window = behavior.scale_down.stabilization_window_seconds / self._speed
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - window:
            self._wanted.popleft()
        if wanted > replicas and (policies := behavior.scale_up.policies):
            wanted = min(wanted, max(self._bounds(now, replicas, policies, 1)))
        elif wanted < replicas:
            wanted = min(replicas, max(count for _, count in self._wanted))
            if policies := behavior.scale_down.policies:
                wanted = max(wanted, min(self._bounds(now, replicas, policies, -1)))
        if wanted != replicas:
            self._changes.append((now, wanted - replicas))
        return wanted

    @staticmethod
    def _by_trigger(trigger: Trigger, replicas: int, ready: int, number: float) -> int:
        ratio = number / trigger.target
        return replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(ready * ratio)

    def _bounds(self, now: float, replicas: int, policies: list[Policy], sign: int) -> list[int]:
        """Return how far each policy lets the replicas go from where they were a period ago."""
        bounds = []
        for policy in policies:
            since = now - policy.period_seconds / self._speed
            before = replicas - sum(change for when, change in self._changes if when > since and change * sign > 0)
            step = policy.value if policy.type == "Pods" else math.ceil(before * policy.value / 100)
            bounds.append(before + sign * step)
        return bounds
