"""The names of all keys in Redis; `docs/architecture.md` has the same list as a table.

All keys of a shard carry its hash tag, so that one script can change them together, on a cluster too.
"""

from __future__ import annotations

#: The only shard there is today. Every key already carries its tag.
SHARD = 0

#: What all keys of the shard begin with; scripts get it as KEYS[1] and build the rest.
PREFIX = f"gymq:{{{SHARD}}}:"

#: The one consumer group of every mailbox.
GROUP = "g"

RUNS = PREFIX + "runs"  # ZSET run -> created, seconds
OPEN = PREFIX + "open"  # LIST of runs that still have rollouts to admit, taken in turn
DUE = PREFIX + "due"  # ZSET rollout -> ms at which its earliest pending call is overdue
WORKERS = PREFIX + "workers"  # HASH worker -> JSON of what it is, or "dead" while its mail is handed back
PAUSED = PREFIX + "paused"  # STRING, exists while admission is paused


def run(name: str) -> str:
    """HASH: config, state, counters and environment specs of a run."""
    return f"{PREFIX}run:{name}"


def rows(run_name: str) -> str:
    """HASH row index -> encoded task: the ledger of what was enqueued and is not yet done."""
    return f"{PREFIX}rows:{run_name}"


def chunks(run_name: str) -> str:
    """HASH chunk id -> number of rows: which chunks the ledger has."""
    return f"{PREFIX}chunks:{run_name}"


def live(run_name: str) -> str:
    """SET of rollouts that were admitted and have not ended: the credits in use."""
    return f"{PREFIX}live:{run_name}"


def groups(run_name: str) -> str:
    """HASH row index -> members ended, for groups that are not complete."""
    return f"{PREFIX}groups:{run_name}"


def skip(run_name: str) -> str:
    """SET of rollout ids that a sink already has, from an earlier life of the run."""
    return f"{PREFIX}skip:{run_name}"


def results(run_name: str) -> str:
    """STREAM of finished rollouts; one consumer group for each declared consumer."""
    return f"{PREFIX}out:{run_name}"


def mailbox(name: str) -> str:
    """STREAM of a mailbox."""
    return f"{PREFIX}m:{name}"


def retry(name: str) -> str:
    """STREAM of what was handed back to a mailbox; read first."""
    return f"{PREFIX}m:{name}:retry"


def alive(worker: str) -> str:
    """STRING that lapses with its worker."""
    return f"{PREFIX}alive:{worker}"


def rollout(rid: str) -> str:
    """HASH: version, state, pending calls of a rollout."""
    return f"{PREFIX}r:{rid}"


def turns(rid: str) -> str:
    """LIST of a rollout's encoded messages."""
    return f"{PREFIX}t:{rid}"


def calls(rid: str) -> str:
    """LIST of a rollout's call records, JSON."""
    return f"{PREFIX}k:{rid}"
