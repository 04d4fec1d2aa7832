"""The names of all keys in Redis; `docs/architecture.md` has the same list as a table.

All keys of a shard carry its hash tag, so that one script can change them together, on a cluster too.
"""

from __future__ import annotations


class Keys:
    """The names of one shard's keys.

    Args:
        shard: the number between the braces: the shard's, or in a Cluster its hash tag; see `gymq/store/topology.py`.
    """

    #: The one consumer group of every mailbox.
    GROUP = "g"

    def __init__(self, shard: int = 0) -> None:
        #: Prefix of all keys; scripts get it as KEYS[1] and build the rest.
        self.prefix = f"gymq:{{{shard}}}:"
        self.runs = self.prefix + "runs"  # ZSET run -> created, seconds
        self.open = self.prefix + "open"  # LIST of runs that still have rollouts to admit, taken in turn
        self.due = self.prefix + "due"  # ZSET rollout -> ms at which it is looked at if nothing has happened until then
        self.workers = self.prefix + "workers"  # HASH worker -> JSON of what it is; "dead" before it: mail is handed back
        self.private = self.prefix + "private"  # HASH worker -> JSON list of what its private mailbox is open for; "": closed
        self.paused = self.prefix + "paused"  # STRING, exists while admission is paused
        self.dead = self.prefix + "dead"  # STREAM of dead letters: mail that killed its process, alone, again and again
        self.shards = self.prefix + "shards"  # STRING of shard 0's prefix, on each server: "<shard> of <shards>" that it is
        self.rates = self.prefix + "rates"  # SET of digests of rate limits whose hash may exist; on shard 0 only
        self.served = self.prefix + "served"  # HASH mailbox -> ms since which it is served without a gap, ms of the last look
        self.isolated = self.prefix + "isolated"  # HASH call id -> executor that works on it

    def run(self, name: str) -> str:
        """HASH: config, state, counters and environment specs of a run."""
        return f"{self.prefix}run:{name}"

    def rows(self, run_name: str) -> str:
        """HASH row index -> encoded task: the ledger of unfinished rows."""
        return f"{self.prefix}rows:{run_name}"

    def chunks(self, run_name: str) -> str:
        """HASH chunk id -> number of rows and a digest of them: which chunks the ledger has."""
        return f"{self.prefix}chunks:{run_name}"

    def live(self, run_name: str) -> str:
        """SET of rollouts that were admitted and have not ended: the credits in use."""
        return f"{self.prefix}live:{run_name}"

    def groups(self, run_name: str) -> str:
        """HASH row index -> members ended, for groups that are not complete."""
        return f"{self.prefix}groups:{run_name}"

    def skip(self, run_name: str) -> str:
        """SET of rollout ids that a sink already has, from an earlier life of the run."""
        return f"{self.prefix}skip:{run_name}"

    def cancelled(self, run_name: str) -> str:
        """SET of rollout ids that were cancelled before they were admitted; they are ended as they begin."""
        return f"{self.prefix}cancel:{run_name}"

    def results(self, run_name: str) -> str:
        """STREAM of finished rollouts; one consumer group for each declared consumer."""
        return f"{self.prefix}out:{run_name}"

    def mailbox(self, name: str) -> str:
        """STREAM of a mailbox."""
        return f"{self.prefix}m:{name}"

    def private_mailbox(self, worker: str) -> str:
        """STREAM of a worker's private mailbox."""
        return f"{self.prefix}m:@{worker}"

    def retry(self, name: str) -> str:
        """STREAM of mail that was handed back to a mailbox; read first."""
        return f"{self.prefix}m:{name}:retry"

    def suspects(self, name: str) -> str:
        """STREAM of a mailbox's suspects: mail held in more than one death; only quarantines read it."""
        return f"{self.prefix}m:{name}:alone"

    def newer(self, name: str) -> str:
        """STREAM of mail that older workers have put aside for workers that can read it."""
        return f"{self.prefix}m:{name}:newer"

    def alive(self, worker: str) -> str:
        """STRING that lapses with its worker."""
        return f"{self.prefix}alive:{worker}"

    def rate(self, digest: str) -> str:
        """HASH: buckets, learned rate and counts of an endpoint's limits; on shard 0 only."""
        return f"{self.prefix}rate:{digest}"

    def weights(self, model: str) -> str:
        """HASH: version, id and description of the weights that a model is to sample with; shard 0's is the truth."""
        return f"{self.prefix}weights:{model}"

    def load_failures(self, model: str) -> str:
        """LIST of the replicas that could not load a model's weights, JSON; on shard 0 only."""
        return f"{self.prefix}failed:{model}"

    def load_turn(self, model: str) -> str:
        """STRING, the replica that loads weights while its neighbours wait; on shard 0 only."""
        return f"{self.prefix}turn:{model}"

    def rollout(self, rid: str) -> str:
        """HASH: version, state, pending calls of a rollout."""
        return f"{self.prefix}r:{rid}"

    def messages(self, rid: str) -> str:
        """LIST of a rollout's encoded messages."""
        return f"{self.prefix}t:{rid}"

    def calls(self, rid: str) -> str:
        """LIST of a rollout's call records, JSON."""
        return f"{self.prefix}k:{rid}"
