"""The Celery app: the outer plane. Its workers host an actor, or are executors, whose processes may be killed."""

from __future__ import annotations

# Celery and kombu have no stubs.
# pyright: reportMissingTypeStubs=false
import logging
import warnings
from collections.abc import Callable
from typing import Any

from celery import Celery, signals
from celery.app.utils import Settings as AppSettings
from celery.exceptions import CPendingDeprecationWarning
from celery.loaders.app import AppLoader
from celery.platforms import SecurityWarning
from celery.worker.consumer import consumer
from kombu.entity import Queue
from kombu.transport import redis as redis_transport
from redis import ResponseError

from gymq import plugins
from gymq.celery import broker, control
from gymq.celery.actor_step import ActorStep
from gymq.celery.executor_step import DrainStep
from gymq.celery.metrics_step import MetricsStep
from gymq.celery.outage_step import OutageStep
from gymq.celery.queues import ENQUEUE, ISOLATED, ISOLATED_QUEUE, ROLLOUTS_QUEUE
from gymq.errors import GymqError
from gymq.observe import logs
from gymq.settings import Settings
from gymq.store.outages import Refusal, refusal

log = logging.getLogger(__name__)

#: Celery's line on connections that break again and again: while the server refuses, each does.
_RESTARTS = "Frequent restarts detected: %r"

#: The entry points whose modules define further Celery tasks.
TASKS = "gymq.tasks"

#: How kombu talks to Redis. Seconds where nothing else is said.
TRANSPORT_OPTIONS: dict[str, Any] = {
    # Truth is in ledgers and pending calls, a queue is a hint: kombu's bookkeeping of unacknowledged messages would cost
    # eight commands a message, and bring answered calls back an hour after a death.
    "ack_emulation": False,
    # Bodies are text: base64 would make them a third longer.
    "body_encoding": "utf-8",
    # 0 comes first, 9 is normal; each step is one more key in every BRPOP.
    "priority_steps": [0, 9],
    "queue_order_strategy": "round_robin",
    # A half-open connection is noticed after these, not never.
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 5,
}

#: An executor's child is replaced after so many calls: what leaks, leaks for so long.
MAX_TASKS_PER_CHILD = 500

#: KiB of resident memory above which an executor's child is replaced after its call; a gibibyte of caches is plenty.
MAX_MEMORY_PER_CHILD = 1024 * 1024


#: Celery's loader, seen as untyped.
_AppLoader: Any = AppLoader


class Loader(_AppLoader):
    """Imports the modules of tasks as Python does; Celery's own loader puts the working directory first."""

    def import_from_cwd(self, module: str, imp: Callable[..., Any] | None = None, package: str | None = None) -> Any:
        """Import a module.

        Args:
            module: its name.
            imp: what imports it, if not the loader.
            package: for a relative name.
        """
        return (imp or self.import_module)(module, package=package)


#: Celery's configuration, seen as untyped.
_AppSettings: Any = AppSettings


class Configuration(_AppSettings):
    """The settings that `create` makes; Celery's own put `CELERY_BROKER_URL` and its like, of another app perhaps, first."""

    @property
    def broker_url(self) -> Any:
        """The broker."""
        return self.get("broker_url")

    broker_read_url = broker_write_url = broker_url

    @property
    def result_backend(self) -> Any:
        """None: no results are kept."""
        return self.get("result_backend")


def create(settings: Settings) -> Any:
    """Make the app.

    Args:
        settings: where Redis is.

    Raises:
        UsageError: its server cannot be Celery's broker.
    """
    kombu_broker = broker.find(settings)
    made: Any = Celery("gymq", broker=kombu_broker.url, loader=Loader, fixups=(), set_as_current=True)
    # Plainly set, the attribute would become an entry.
    object.__setattr__(made.conf, "__class__", Configuration)
    made.conf.update(
        broker_transport_options=TRANSPORT_OPTIONS | kombu_broker.options,
        broker_use_ssl=kombu_broker.ssl or False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # What the server refuses for now: Celery knows no code of it, and would end the worker.
        broker_channel_error_retry=True,
        broker_pool_acquire_timeout=30,
        result_backend=None,
        task_ignore_result=True,
        # Any Celery client can send it; nothing accepts pickle.
        task_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_queues=[Queue(name, routing_key=name) for name in (ROLLOUTS_QUEUE, ISOLATED_QUEUE)],
        task_default_queue=ROLLOUTS_QUEUE,
        task_default_priority=9,
        task_routes={ENQUEUE: {"queue": ROLLOUTS_QUEUE}, ISOLATED: {"queue": ISOLATED_QUEUE}},
        task_create_missing_queues=False,
        task_send_sent_event=False,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_disable_rate_limits=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # What environments and roles print goes where they print it.
        worker_redirect_stdouts=False,
        worker_max_tasks_per_child=MAX_TASKS_PER_CHILD,
        worker_max_memory_per_child=MAX_MEMORY_PER_CHILD,
        include=sorted(point.module for point in plugins.points(TASKS).values()),
    )
    made.steps["worker"].update({ActorStep, DrainStep, MetricsStep, OutageStep})
    return made


@signals.setup_logging.connect
def set_up_logs(loglevel: int, **_: object) -> None:
    """Set up the log lines of a worker in Celery's place, which would take the root logger over.

    Args:
        loglevel: of all loggers that are not gymq's.
    """
    settings = Settings.from_environment()
    logs.configure(settings, loglevel)
    # Celery has the warning shown, whatever the filters of warnings say.
    logging.getLogger("py.warnings").addFilter(_is_no_notice)
    if not settings.broker_url:
        for name in (consumer.__name__, redis_transport.__name__):
            logging.getLogger(name).addFilter(_is_no_outage)


def _is_no_outage(record: logging.LogRecord) -> bool:
    """Return whether a line of Celery's is not of the broker's outage, which each of its tries to connect tells again."""
    # The broker is the first shard, whose outage an event tells; one that refuses for good is told by nobody else.
    if record.msg == _RESTARTS:
        return False  # each of them has a line
    said = [record.msg, *(record.args if isinstance(record.args, tuple) else ())]
    errors = [one for one in (*said, record.exc_info and record.exc_info[1]) if isinstance(one, ResponseError)]
    if errors:
        return refusal(errors[0]) not in (Refusal.PASSING, Refusal.FULL)
    return not any(line in said for line in (consumer.CONNECTION_RETRY, consumer.CONNECTION_ERROR))


def _is_no_notice(record: logging.LogRecord) -> bool:
    """Return whether a warning is not of a default that may change, at each outage, though the app says what it wants."""
    return CPendingDeprecationWarning.__name__ not in record.getMessage()


# Celery warns of root because of pickle, which is not accepted here; in a container everybody is root.
warnings.filterwarnings("ignore", category=SecurityWarning)

app: Any = create(Settings.from_environment())
control.install()


@app.task(name=ENQUEUE, throws=(GymqError,))
def enqueue(run: str, chunk: str, rows: list[Any] | None = None) -> None:
    """Write rows to a run's ledger and admit what its credits allow.

    Args:
        run: the run's name.
        chunk: the chunk's id, the same if it is sent again.
        rows: the rows; None: they stand in the ledger already.
    """
    # Only who runs the task needs the admission; clients import this module to send.
    from gymq.celery import enqueue_task

    try:
        enqueue_task.enqueue(Settings.from_environment(), run, chunk, rows)
    except GymqError as error:
        # Celery's own line for an expected failure is of a level that nobody sees.
        log.error("%s of chunk %r of run %r: %s", ENQUEUE, str(chunk)[:60], str(run)[:60], error)
        raise
