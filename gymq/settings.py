"""What a process must know before it can do anything: where Redis is, and the few times that all processes share."""

from __future__ import annotations

import os
from typing import Annotated, Any

import msgspec

from gymq.errors import UsageError

#: The environment variables that set the fields below.
PREFIX = "GYMQ_"


#: Seconds.
DAY = 24 * 3600


class Settings(msgspec.Struct, frozen=True):
    """Settings of one process; each field is read from the variable `GYMQ_<FIELD>`.

    Args:
        redis_url: the servers, a shard each; `gymq/store/topology.py` lists the forms.
        broker_url: Celery's broker, one server; "": that of the first shard.
        liveness: seconds after which a silent worker counts as dead; the same for all workers.
        ttl: seconds for which what is left of a run is kept after it is done.
        shard: the shard that these are for; set by `at`, not by the environment.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    broker_url: str = ""
    liveness: Annotated[float, msgspec.Meta(gt=0, le=DAY)] = 5.0
    ttl: Annotated[int, msgspec.Meta(ge=0, le=10_000 * DAY)] = 7 * DAY
    shard: int = 0

    def at(self, shard: int) -> Settings:
        """The same settings for what works on one shard.

        Args:
            shard: its number.
        """
        return msgspec.structs.replace(self, shard=shard)

    def environment(self) -> dict[str, str]:
        """The variables by which a child process gets the same settings; they may hold passwords."""
        return {
            f"{PREFIX}REDIS_URL": self.redis_url,
            f"{PREFIX}BROKER_URL": self.broker_url,
            f"{PREFIX}LIVENESS": f"{self.liveness:g}",
            f"{PREFIX}TTL": str(self.ttl),
        }

    @classmethod
    def from_environment(cls, **given: Any) -> Settings:
        """Read the settings from the environment; what is given and not None comes first.

        Raises:
            UsageError: a variable is not of its field's type.
        """
        values: dict[str, Any] = {}
        for field in set(cls.__struct_fields__) - {"shard"}:
            text = os.environ.get(PREFIX + field.upper())
            if text:
                values[field] = text
        values |= {key: value for key, value in given.items() if value is not None}
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as error:
            said, _, field = str(error).replace("`", "").partition(" - at $.")
            raise UsageError(f"{PREFIX}{field.upper()}: {said}; correct the variable, or unset it") from None
