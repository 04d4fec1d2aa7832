"""Blocking connections, one per shard, for code without an event loop: executors, remote control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gymq.errors import ServerUnreachable
from gymq.settings import Settings
from gymq.store import outages
from gymq.store.keys import Keys
from gymq.store.scripts import ScriptCall
from gymq.store.topology import locate, parse

T = TypeVar("T")

#: Seconds that a command may wait for Redis: the caller blocks meanwhile.
TIMEOUT = 2.0


class SyncConnection:
    """A connection to one shard, opened at first use; no hidden retries.

    Args:
        settings: where Redis is, and which shard is meant.
        name: the connection's name in the server's client list.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._address = parse(settings.redis_url)[settings.shard]
        self.keys = Keys(self._address.tag)
        self._name = name
        self._shard = settings.shard
        self._redis: redis.Redis | None = None
        self._away = False

    def do(self, work: Callable[[redis.Redis], T]) -> T:
        """Pass the connection to a function, and return its result.

        Raises:
            redis.RedisError: the shard cannot be reached, or refused the command; the next time it is looked for again.
        """
        try:
            if self._redis is None:
                self._redis = self._open()
            result = work(self._redis)
        except (redis.RedisError, OSError) as error:
            self.close()
            if not isinstance(error, redis.ResponseError) or outages.refusal(error) is outages.Refusal.PASSING:
                self._away = True
                outages.began(self._shard, self._address, error)
            raise
        if self._away:
            self._away = False
            outages.ended(self._shard, self._address)
        return result

    def run(self, call: ScriptCall[T]) -> T:
        """Run a script once on this shard, whose prefix is KEYS[1].

        Raises:
            redis.RedisError: as `do`.
        """

        def work(server: Any) -> T:
            return call.decode(server.register_script(call.source)(keys=[self.keys.prefix], args=call.arguments))

        return self.do(work)

    def _open(self) -> redis.Redis:
        # Its keyword arguments have no types.
        server: Any = redis.Redis
        try:
            url = locate(self._address)
        except ServerUnreachable as error:
            raise redis.ConnectionError(error.reason) from None
        made: redis.Redis = server.from_url(
            url,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            client_name=self._name,
            single_connection_client=True,  # so that `forget` can reach it
            # As in `gymq.store.connection`.
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        )
        return made

    def close(self) -> None:
        """Close the connection."""
        if self._redis is not None:
            self._redis.close()
            self._redis = None

    def forget(self) -> None:
        """Close a connection inherited by a fork without a word to the server, which still talks to the parent."""
        if self._redis is not None:
            connection: Any = self._redis.connection  # has no type
            if connection is not None:
                connection.disconnect()  # in another process than the one that opened it, this closes the descriptor only
            self._redis = None


def sync_connections(settings: Settings, name: str) -> list[SyncConnection]:
    """Return a connection to each shard.

    Args:
        settings: where they are.
        name: the connections' name in the servers' client lists.
    """
    return [SyncConnection(settings.at(shard), name) for shard in range(len(parse(settings.redis_url)))]
