"""Metrics of an installation: what only Redis knows, of all processes together; `docs/observability.md` lists them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress

from prometheus_client import CollectorRegistry

from gymq.aio import cancel_and_wait
from gymq.celery.queues import EXECUTOR
from gymq.client.replica_status import ModelWeights, weights_status
from gymq.errors import ServerUnreachable, UnknownName
from gymq.observe.series import Count, Level, Series
from gymq.ops.backlog import Backlog
from gymq.ops.bottleneck import bottleneck, stage_seconds
from gymq.ops.mailboxes import Mailbox, executor_queue, oldest_isolated, private_mailboxes, read_mailbox
from gymq.ops.situation import Situation, admission_paused, needs, rate_limits
from gymq.ops.stream_flow import private_owners, read_flows
from gymq.ops.workforce import Workforce, read_workforce
from gymq.store import runs
from gymq.store.connection import Outage
from gymq.store.run_status import TOKENS, RunStatus
from gymq.store.sharded import Shards

#: Runs that are shown, the newest that are not over: their names are the one label that people choose.
MAX_RUNS = 50

#: Seconds between two looks; a scrape gets what the last one has found.
LOOK_PERIOD = 5.0


class InstallationMetrics:
    """The metrics of an installation, as of the last look."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._backlog = Backlog()
        #: All of them.
        self.series: list[Series] = []
        box = ("role", "mailbox")
        self._reachable = self._level("gymq_installation_up", "0: Redis could not be read at the last look")
        self._workers = self._level("gymq_workers", "Live workers", "role")
        self._waiting = self._level("gymq_mailbox_waiting", "Messages that no worker has taken", *box)
        self._taken = self._level("gymq_mailbox_taken", "Messages that workers are busy with", *box)
        self._readers = self._level("gymq_mailbox_workers", "Live workers that read it", *box)
        self._oldest = self._level("gymq_mailbox_oldest_waiting_seconds", "Age of the oldest message that waits", *box)
        self._lease = self._level("gymq_mailbox_oldest_taken_seconds", "Time since the oldest one in work was taken", *box)
        self._seconds = self._level("gymq_mailbox_backlog_seconds", "Seconds that its workers need for what waits", *box)
        self._served = Count("gymq_mailbox_served", "Messages that have left it", box)
        self._add(self._served)
        self._paused = self._level("gymq_admission_paused", "1: no rollouts are admitted")
        self._dead = self._level("gymq_dead_letters", "Dead letters that lie there")
        self._rollouts = self._level("gymq_run_rollouts", "Rollouts of a run by status", "run", "status")
        self._unread = self._level(
            "gymq_run_unread", "Finished rollouts that a consumer has not acknowledged", "run", "consumer"
        )
        self._tokens = self._level("gymq_run_tokens", "Tokens of rollouts that have ended", "run", "token")
        self._cause = self._level("gymq_run_waits", "1: what a run waits for", "run", "cause")
        self._stages = self._level("gymq_stage_seconds", "Seconds of all calls in the last minute, by stage", "stage")
        self._limits = self._level(
            "gymq_shared_limit", "Units a second of a rate limit that holds requests back", "of", "limit"
        )
        self._limited = self._level("gymq_shared_limit_waiting", "Requests that wait for it", "of", "limit")
        self._wanted = self._level("gymq_policy_version_wanted", "Policy version that was published", "model")
        self._behind = self._level("gymq_policy_version_oldest", "Oldest policy version of a live worker", "model")
        self._cache = self._level("gymq_kv_cache_ratio", "Fullest KV cache of live workers")

    async def look(self, shards: Shards) -> None:
        """Read all anew.

        Args:
            shards: connections to all shards.

        Raises:
            Outage, ServerUnreachable: a shard is away.
        """
        workforce = await read_workforce(shards)
        going = await _open_runs(shards)
        needed = {run.config.name: await needs(shards, run) for run in going}
        names = sorted({*workforce.readers, *workforce.starting, *(box for boxes in needed.values() for box in boxes)})
        boxes = await _mailboxes(shards, names, workforce)
        limits = await rate_limits(shards)
        paused = await admission_paused(shards)
        dead: int = sum(await shards.each(lambda connection: connection.send("XLEN", connection.keys.dead)))
        weights = await weights_status(shards)
        await self._show_mailboxes(shards, boxes)
        self._reachable.show({(): 1})
        self._workers.show({(role,): count for role, count in workforce.roles.items()})
        self._paused.show({(): paused})
        self._dead.show({(): dead})
        self._show_runs(going)
        causes: dict[str, str] = {}
        for run in going:
            its = {box: boxes[box] for box in needed[run.config.name]}
            causes[run.config.name] = bottleneck(Situation(run, its, workforce, limits, paused)).cause
        self._cause.show({(run, cause): 1 for run, cause in causes.items()})
        seconds = stage_seconds(workforce.activity, boxes.values(), limits)
        self._stages.show({(stage,): value for stage, value in seconds.items()})
        held = [limit for limit in limits if limit.limit]
        self._limits.show({(limit.label, limit.limit): limit.rate for limit in held})
        self._limited.show({(limit.label, limit.limit): limit.waiting for limit in held})
        self._show_weights(weights)
        caches = [load["kv_cache"] for load in workforce.loads.values() if "kv_cache" in load]
        self._cache.show({(): max(caches)} if caches else {})

    async def follow(self, shards: Shards, stop: asyncio.Event) -> None:
        """Look every few seconds, through outages, until asked to stop.

        Args:
            shards: connections to all shards.
            stop: set it to stop.
        """
        stopped = asyncio.create_task(stop.wait())
        while not stopped.done():
            try:
                await self.look(shards)
            except (Outage, ServerUnreachable):
                self.lost()
                reconnecting = asyncio.create_task(shards.reconnect())
                await asyncio.wait([reconnecting, stopped], return_when=asyncio.FIRST_COMPLETED)
                await cancel_and_wait([reconnecting])
                continue
            await asyncio.wait([stopped], timeout=LOOK_PERIOD)

    def lost(self) -> None:
        """Show that Redis cannot be read, and nothing of before."""
        for series in self.series:
            series.show({})
        self._reachable.show({(): 0})

    def _level(self, name: str, told: str, *labels: str) -> Level:
        made = Level(name, told, labels)
        self._add(made)
        return made

    def _add(self, series: Series) -> None:
        self.series.append(series)
        self.registry.register(series)

    async def _show_mailboxes(self, shards: Shards, boxes: dict[str, Mailbox]) -> None:
        flows = await read_flows(shards, [name for name in boxes if name != EXECUTOR])
        self._backlog.note(flows)
        shown = {_labels(name): box for name, box in boxes.items()}
        self._waiting.show({labels: box.waiting for labels, box in shown.items()})
        self._taken.show({labels: box.taken for labels, box in shown.items()})
        self._readers.show({labels: box.workers for labels, box in shown.items()})
        self._oldest.show({labels: box.oldest for labels, box in shown.items()})
        self._lease.show({_labels(name): flow.oldest_taken for name, flow in flows.items()})
        self._seconds.show({labels: self._backlog.seconds(box) for labels, box in shown.items()})
        self._served.show({_labels(name): sum(flow.served.values()) for name, flow in flows.items() if flow.served})

    def _show_runs(self, going: list[RunStatus]) -> None:
        rollouts: dict[tuple[str, ...], float] = {}
        for run in going:
            name = run.config.name
            rollouts[name, "waiting"] = max(0, run.total - run.admitted)
            rollouts[name, "live"] = run.live
            rollouts |= {(name, status): count for status, count in run.by_status.items()}
        self._rollouts.show(rollouts)
        self._unread.show({(run.config.name, consumer): lag for run in going for consumer, lag in run.unread.items()})
        tokens: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for run in going:
            for usage in run.tokens.values():
                for field in TOKENS:
                    tokens[run.config.name, field.partition("_")[0]] += getattr(usage, field)
        self._tokens.show(dict(tokens))

    def _show_weights(self, weights: list[ModelWeights]) -> None:
        self._wanted.show({(model.model,): model.wanted.version for model in weights if model.wanted is not None})
        versions = {model.model: [one.version for one in model.replicas if one.version is not None] for model in weights}
        self._behind.show({(model,): min(known) for model, known in versions.items() if known})


def _labels(mailbox: str) -> tuple[str, str]:
    """Return the role and the name of a mailbox."""
    return mailbox.partition(":")[0], mailbox


async def _open_runs(shards: Shards) -> list[RunStatus]:
    """Return the runs that are not over, the newest `MAX_RUNS` of them."""
    known = {name for names in await shards.each(runs.names) for name in names}
    open_runs: list[RunStatus] = []
    for name in known:
        with suppress(UnknownName):  # it was removed meanwhile
            open_runs.append(await shards.status(name))
    open_runs.sort(key=lambda run: run.config.created)
    return open_runs[-MAX_RUNS:]


async def _mailboxes(shards: Shards, names: list[str], workforce: Workforce) -> dict[str, Mailbox]:
    """Return mailboxes by name; what lies in private ones counts for what their workers serve."""
    boxes: dict[str, Mailbox] = {}
    for name in names:
        readers = workforce.readers.get(name, 0)
        if name == EXECUTOR:
            boxes[name] = await executor_queue(shards, readers)
            boxes[name].oldest = await oldest_isolated(shards)
        else:
            boxes[name] = await read_mailbox(shards, name, readers)
    for connection in shards.connections:
        owners = await private_owners(connection)
        for private in await private_mailboxes(connection):
            name = owners.get(private.name.removeprefix("@"), "")
            if name:
                box = boxes.setdefault(name, Mailbox(name, 0, 0, workforce.roles.get(name, 0)))
                box.waiting += private.waiting
                box.taken += private.taken
    return boxes
