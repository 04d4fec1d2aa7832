"""Replies from a process without a loop: an executor's child, or its parent when the child is dead."""

from __future__ import annotations

from gymq.store import scripts
from gymq.store.scripts import ReplyEntry, ReplyOutcome
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

    entry = ReplyEntry(call.rollout, call.step, call.n, encode(reply), token=call.idempotency_token)
    (outcome,) = client.run(scripts.reply([entry]))
    return outcome is ReplyOutcome.MERGED
