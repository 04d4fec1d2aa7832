"""Replying from a process without a loop: an executor's child, or its parent when the child is dead."""

from __future__ import annotations

from typing import Any

from gymq.store.batching import pack
from gymq.store.connection import script
from gymq.store.sync_connection import SyncConnection
from gymq.wire.calls import Call, Reply, encode


def send_sync(client: SyncConnection, call: Call, reply: Reply) -> bool:
    """Merge a reply into its rollout, unless the call was answered before.

    Args:
        client: a connection to the shard of the call's row.
        call: the call.
        reply: its reply.

    Returns:
        Whether it was merged.

    Raises:
        redis.RedisError: Redis cannot be reached; sending the reply again does no harm.
    """

    def merge(server: Any) -> bool:
        arguments = pack([[call.rollout, call.step, call.n, encode(reply), "", "", call.idempotency_token]])
        return server.register_script(script("reply"))(keys=[client.keys.prefix], args=[arguments]) == [1]

    return client.do(merge)
