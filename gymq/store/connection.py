"""One connection to Redis: commands and scripts in batches, raw replies, no hidden retries."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from gymq.errors import GymqError, ServerUnreachable, UsageError
from gymq.settings import Settings
from gymq.store import outages
from gymq.store.keys import Keys
from gymq.store.outages import Refusal
from gymq.store.scripts import ScriptCall
from gymq.store.topology import NAME_IT, locate, parse

T = TypeVar("T")

#: Seconds without an answer after which a connection counts as broken; longer than any blocking read.
READ_TIMEOUT = 15.0

#: Seconds that opening a connection may take.
CONNECT_TIMEOUT = 5.0

#: Seconds between two tries to connect again, on average.
RECONNECT_PAUSE = 0.25

#: The share of that pause by which it is spread at random: the connections of a fleet, which broke together, do not come back
#: at the same moments.
RECONNECT_SPREAD = 0.5

#: Seconds for which a process that was asked to end waits for a shard that is away. What it holds is handed back by others, so
#: it loses nothing; and the workers and the sink of a `gymq run`, one after the other, end within ten seconds.
OUTAGE_LIMIT = 3.0

#: Seconds between two tries while the server's memory is full: sinks make room, and they must get through.
FULL_PAUSE = 0.5


class Outage(Exception):
    """The connection broke, or the server refuses for now; whether the last command was carried out is not known."""


class ServerFull(GymqError):
    """The server's memory is full; the command had no effect."""


class AccessRefused(GymqError):
    """The server refuses the user, or what the user asks for."""


class UnknownScript(GymqError):
    """The server does not know a script: it was restarted since the script was loaded."""


class Connection:
    """A connection to one shard, for one coroutine at a time.

    Args:
        settings: where Redis is, and which shard is meant.
        name: the connection's name in the server's client list.

    Raises:
        UsageError: the URL cannot be understood.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        addresses = parse(settings.redis_url)
        if settings.shard >= len(addresses):
            raise UsageError(
                f"--redis: it names {len(addresses)} shards, and there is no shard {settings.shard}; name all shards"
            )
        self.shard = settings.shard
        #: How many shards there are.
        self.shards = len(addresses)
        self.address = addresses[settings.shard]
        self._name = name
        self._connection: Any = self._make(self.address.url)
        self._refused = False
        self._away = False
        self.keys = Keys(self.address.tag)
        self._shas: dict[str, bytes] = {}
        self._lock = asyncio.Lock()

    async def connect(self) -> None:
        """Open the connection.

        Raises:
            ServerUnreachable: no server answers, or it refuses the password.
        """
        if self.address.kind != "server" and not self._connection.is_connected:
            self._connection = self._make(await asyncio.to_thread(locate, self.address))
        try:
            await self._connection.connect()
        except (redis.RedisError, OSError) as error:
            reason = str(error).rstrip(".")
            raise ServerUnreachable(f"Redis cannot be reached: {reason}", NAME_IT) from None

    async def reconnect(self) -> None:
        """Open the connection again, to a server that takes writes, however long that takes; its other users wait meanwhile."""
        async with self._lock:
            while True:
                await self._connection.disconnect(nowait=True)
                if self._refused:
                    self._refused = False
                    await pause()
                try:
                    await self.connect()
                    return await self._probe()
                except (ServerUnreachable, Outage) as error:
                    self.tell_outage(error)
                    await pause()

    async def probe(self) -> None:
        """Ask whether the shard takes writes.

        Raises:
            Outage: it does not.
        """
        async with self._lock:
            await self._probe()

    async def _probe(self) -> None:
        with contextlib.suppress(GymqError):  # not for this user; but it is there
            # A write without effect, since that key never expires. It works even when the server's memory is full.
            await self._exchange("PERSIST", self.keys.shards)

    def tell_outage(self, reason: Exception) -> None:
        """Tell that the shard is away; the next command that it answers ends that.

        Args:
            reason: why it cannot be used.
        """
        self._away = True
        outages.began(self.shard, self.address, reason)

    def _make(self, url: str) -> Any:
        pool = redis.asyncio.ConnectionPool.from_url(
            url,
            protocol=2,
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=READ_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            client_name=self._name,
            # A socket on this machine cannot be half open, and its class does not know the word.
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        )
        try:
            return pool.make_connection()
        except (TypeError, ValueError, redis.RedisError) as error:
            # Everything behind the question mark becomes an argument of the connection.
            said = str(error).partition("() got an ")[2] or str(error)
            raise UsageError(f"--redis: {said}; correct what stands behind '?' in the URL") from None

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.disconnect(nowait=True)

    async def send(self, *command: Any) -> Any:
        """Send one command and return its raw reply.

        Raises:
            Outage: the connection broke.
            GymqError: the server refused the command.
        """
        async with self._lock:
            reply = await self._exchange(*command)
            if self._away:
                self._away = False
                outages.ended(self.shard, self.address)
            return reply

    async def _exchange(self, *command: Any) -> Any:
        try:
            await self._connection.send_command(*command, check_health=False)
            return await self._connection.read_response()
        except (redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse, OSError) as error:
            raise Outage(str(error)) from None
        except NoScriptError as error:
            raise UnknownScript(f"Redis refused {command[0]}: {error}") from None
        except redis.ResponseError as error:
            match outages.refusal(error):
                case Refusal.FULL:
                    raise ServerFull(f"Redis refused {command[0]}, its memory is full: {error}") from None
                case Refusal.PASSING:
                    self._refused = True
                    self.tell_outage(error)
                    raise Outage(str(error)) from None
                case Refusal.ACCESS:
                    raise AccessRefused(f"Redis refused {command[0]}: {error}") from None
                case Refusal.FINAL:
                    raise GymqError(f"Redis refused {command[0]}: {error}") from None

    async def run(self, call: ScriptCall[T]) -> T:
        """Run a script once on this shard, whose prefix is KEYS[1].

        Raises:
            Outage, GymqError: as `send`.
        """
        sha = self._shas.get(call.name)
        if sha is None:
            sha = self._shas[call.name] = await self.send("SCRIPT LOAD", call.source)
        try:
            reply = await self.send("EVALSHA", sha, 1, self.keys.prefix, *call.arguments)
        except UnknownScript:
            await self.send("SCRIPT LOAD", call.source)
            reply = await self.send("EVALSHA", sha, 1, self.keys.prefix, *call.arguments)
        return call.decode(reply)

    async def insist(self, call: ScriptCall[T]) -> T:
        """Run a script that may run twice, until the server has answered and had room."""
        while True:
            try:
                return await self.run(call)
            except Outage:
                await self.reconnect()
            except ServerFull:
                await asyncio.sleep(FULL_PAUSE)


async def pause() -> None:
    """Wait before another try to connect."""
    await asyncio.sleep(RECONNECT_PAUSE * random.uniform(1 - RECONNECT_SPREAD, 1 + RECONNECT_SPREAD))
