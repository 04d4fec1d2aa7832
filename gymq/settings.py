"""The settings of a process: the address of Redis, and the times that all processes share."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import msgspec

from gymq.errors import UsageError

#: The prefix of the environment variables that set the fields of `Settings`.
PREFIX = "GYMQ_"

#: Seconds of a day.
DAY = 24 * 3600


class Settings(msgspec.Struct, frozen=True):
    """The settings of one process; each field is read from the variable `GYMQ_<FIELD>`.

    Args:
        redis_url: the addresses of the servers, one per shard; `gymq/store/topology.py` lists the forms.
        broker_url: the address of Celery's broker, one server; "": the first shard.
        liveness: seconds after which a silent worker counts as dead; the same for all workers.
        ttl: seconds for which the remains of a finished run are kept.
        log_level: the least that the process's log lines are about.
        log_format: lines for people, or a JSON object a line.
        metrics_port: where the process serves `/metrics`; 0: at any free port; None: nowhere.
        metrics_host: the address at which it listens.
        shard: the shard that the settings are for; set by `at`, never by the environment.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    broker_url: str = ""
    liveness: Annotated[float, msgspec.Meta(gt=0, le=DAY)] = 5.0
    ttl: Annotated[int, msgspec.Meta(ge=0, le=10_000 * DAY)] = 7 * DAY
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    metrics_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    metrics_host: str = "127.0.0.1"
    shard: int = 0

    def at(self, shard: int) -> Settings:
        """Return the same settings for one shard.

        Args:
            shard: its number.
        """
        return msgspec.structs.replace(self, shard=shard)

    def metrics_from(self, index: int) -> Settings:
        """Return the settings of one of several processes of one machine: each serves its metrics at a port of its own.

        Args:
            index: the process's number; it is added to the port, unless there is none or any free one will do.
        """
        return msgspec.structs.replace(self, metrics_port=self.metrics_port + index) if self.metrics_port else self

    def environment(self) -> dict[str, str]:
        """Return the variables that give a child process the same settings; they may hold passwords."""
        return {
            f"{PREFIX}REDIS_URL": self.redis_url,
            f"{PREFIX}BROKER_URL": self.broker_url,
            f"{PREFIX}LIVENESS": f"{self.liveness:g}",
            f"{PREFIX}TTL": str(self.ttl),
            f"{PREFIX}LOG_LEVEL": self.log_level,
            f"{PREFIX}LOG_FORMAT": self.log_format,
            f"{PREFIX}METRICS_PORT": "" if self.metrics_port is None else str(self.metrics_port),
            f"{PREFIX}METRICS_HOST": self.metrics_host,
        }

    @classmethod
    def from_environment(cls, **overrides: object) -> Settings:
        """Read the settings from the environment.

        Args:
            overrides: values by field that take precedence; None: none.

        Raises:
            UsageError: a variable is not of its field's type.
        """
        variables = {field: os.environ.get(PREFIX + field.upper()) for field in cls.__struct_fields__ if field != "shard"}
        values: dict[str, object] = {field: text for field, text in variables.items() if text}
        values |= {field: value for field, value in overrides.items() if value is not None}
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as error:
            reason, _, field = str(error).replace("`", "").partition(" - at $.")
            raise UsageError(f"{PREFIX}{field.upper()}: {reason}; correct the variable, or unset it") from None
