"""The rights on Redis that each role needs, as a rule of its access control list (ACL).

A rule names commands one by one, so that a server's new ones are not in it, and keys by what the role has to do with: a
trainer's password answers no call, a model worker's reads no finished rollout. What a role may do to the keys that it has it
can do by a script as well: scripts have the rights of their user.
"""

from __future__ import annotations

#: Commands on data that gymq's code and scripts, Celery and kombu use.
COMMANDS = (
    *("get", "set", "setnx", "mget", "del", "exists", "expire", "pexpire", "persist", "ttl"),
    *("hget", "hmget", "hgetall", "hkeys", "hlen", "hexists", "hstrlen", "hscan", "hset", "hsetnx", "hdel", "hincrby"),
    *("sadd", "srem", "scard", "smembers", "sismember"),
    *("zadd", "zrem", "zrange", "zrangebyscore"),
    *("lpush", "rpush", "lrem", "llen", "lrange", "lindex", "ltrim", "rpoplpush", "brpop"),
    *("xadd", "xack", "xdel", "xlen", "xrange", "xrevrange", "xtrim", "xreadgroup", "xpending", "xclaim", "xautoclaim"),
    *("xgroup|create", "xgroup|destroy", "xgroup|delconsumer", "xinfo|groups", "xinfo|consumers", "xinfo|stream"),
    *("evalsha", "script|load", "script|exists", "time", "memory|usage"),
    *("multi", "exec", "discard", "watch", "unwatch"),
    *("publish", "subscribe", "psubscribe", "unsubscribe", "punsubscribe"),
    *("ping", "select", "client|setname"),
)

#: Keys by which every worker lives: the registry, leases, mail, dead letters, the pause that remote control sets.
_WORKER = ("workers", "alive:*", "private", "m:*", "served", "shards", "dead", "paused")

#: Keys of a rollout in flight that a call needs: its state, conversation, calls and task.
_CALL = ("r:*", "t:*", "k:*", "rows:*")

#: Keys of a run.
_RUN = (
    "shards",
    "runs",
    "open",
    "run:*",
    "rows:*",
    "chunks:*",
    "live:*",
    "groups:*",
    "skip:*",
    "cancel:*",
    "out:*",
    "weights:*",
)

#: The keys of each role within a shard, without its prefix.
KEYS: dict[str, tuple[str, ...]] = {
    "agent": (*_WORKER, *_CALL, *_RUN, "weights:*", "due", "isolated"),
    "model": (*_WORKER, *_CALL, "isolated", "rates", "rate:*", "weights:*", "failed:*", "turn:*"),
    "resource": (*_WORKER, *_CALL, "isolated"),
    "executor": ("workers", "alive:*", "m:agent", "shards", "dead", "paused", "r:*", "isolated"),
    "producer": (*_RUN, "weights:*"),
    "consumer": (*_RUN, "weights:*"),
    "operator": ("*",),
    "all": ("*",),
}

#: The queues of Celery that a role sends to or reads.
_QUEUES = {
    "agent": ("gymq.rollouts*",),
    "resource": ("gymq.isolated*",),
    "executor": ("gymq.isolated*",),
    "producer": ("gymq.rollouts*",),
    "operator": ("gymq.rollouts*", "gymq.isolated*"),
    "all": ("gymq.rollouts*", "gymq.isolated*"),
}

#: Keys of kombu: which queue gets what; the queues of remote control, named after their workers and askers.
_BINDINGS = "_kombu.*"
_CONTROL = "*.celery.pidbox*"

ROLES = tuple(KEYS)


def rule(role: str, database: int = 0) -> str:
    """Return the command that makes the user of a role; PASSWORD stands for the password.

    Args:
        role: one of ROLES; `all` may do all that gymq does, as a `gymq run` on a shared server must.
        database: the database of Celery's broker, which the names of its channels bear.
    """
    keys = ["gymq:{*}:", *(f"gymq:{{*}}:{key}" for key in dict.fromkeys(KEYS[role])), *_QUEUES.get(role, ())]
    channels: list[str] = []
    commands = list(COMMANDS)
    if role != "consumer":
        keys.append(_BINDINGS)
    if role not in ("consumer", "producer"):
        commands.append("info")  # whether the server evicts keys, which a worker refuses
        keys.append(_CONTROL)
        channels = [f"/{database}.celery.pidbox", f"/{database}.celeryev/*"]
    if role in ("operator", "all"):
        keys.append("celeryev*")  # what Flower reads events by
        commands.append("scan")
    # What a connection says of itself differs between servers; a category has only what they know.
    rights = ["-@all", "+@connection", "-@admin", "-@dangerous", *(f"+{command}" for command in commands)]
    return " ".join(
        [
            # Before Redis 7 `reset` leaves all channels open.
            f"ACL SETUSER gymq-{role} reset resetchannels on >PASSWORD",
            *(f"~{key}" for key in keys),
            *(f"&{channel}" for channel in channels),
            *rights,
        ]
    )
