"""Replying from a process without a loop: an executor's child, or its parent when the child is dead."""

from __future__ import annotations

from typing import Any

import redis

from gymq.batch import pack
from gymq.call import Call, Reply, encode
from gymq.keys import Keys
from gymq.link import script


def send_sync(client: redis.Redis, call: Call, reply: Reply) -> bool:
    """Merge a reply into its rollout, unless the call was answered before.

    Args:
        client: a connection.
        call: the call.
        reply: its reply.

    Returns:
        Whether it was merged.

    Raises:
        redis.RedisError: Redis cannot be reached; sending the reply again does no harm.
    """
    merge: Any = client.register_script(script("reply"))
    one = [call.rollout, call.step, call.n, encode(reply), "", "", call.mark]
    return merge(keys=[Keys().prefix], args=[pack([one])]) == [1]
