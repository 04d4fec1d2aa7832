"""What processes and the server have used."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import redis

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


class Used(msgspec.Struct):
    """What a measured interval used, for each rollout unless said otherwise.

    Args:
        cpu: milliseconds of CPU by role, user and system; of the workers that left early or came late too.
        processes: how many processes of each role there were.
        peak_mb: the peak resident memory of the largest process of each role, since its start.
        server_peak_mb: the server's `used_memory_peak`.
        commands: commands that the server carried out, those inside scripts too.
        scripts: EVALSHA calls, each a commit or a read of many rollouts.
        reads: XREADGROUP calls.
        by_command: calls of each command.
        bytes_in: bytes that the server received.
        bytes_out: bytes that the server sent.
        aof: bytes that were written to the append-only file; of what the server compacts away, a little may be missing.
        others: cores that were busy with something else meanwhile, this bench's own process included: the noise.
    """

    cpu: dict[str, float]
    processes: dict[str, int]
    peak_mb: dict[str, float]
    server_peak_mb: float
    commands: float
    scripts: float
    reads: float
    by_command: dict[str, float]
    bytes_in: float
    bytes_out: float
    aof: float
    others: float


class Meter:
    """Measures processes and a server between `start` and `stop`.

    Args:
        client: a connection to the server.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._roles: dict[int, str] = {}
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._peak: dict[int, float] = {}
        self._before: dict[str, Any] = {}
        self._began = (0.0, 0.0)
        self._log = self._written = 0

    def add(self, role: str, pid: int) -> None:
        """Measure a process too, from now on; one that was just started is measured from its start."""
        self._roles[pid] = role
        self._first[pid] = self._last[pid] = self._peak[pid] = 0.0

    def start(self) -> None:
        """The interval begins; processes that are gone are forgotten."""
        self._roles = {pid: role for pid, role in self._roles.items() if psutil.pid_exists(pid)}
        self.look()
        self._first = {pid: self._last[pid] for pid in self._roles}
        self._before = self._server()
        self._log, self._written = self._before["aof"], 0
        self._began = time.monotonic(), _busy()

    def look(self) -> None:
        """Read what the processes have used; call it now and then if some may leave."""
        for pid in self._roles:
            try:
                self._last[pid] = sum(psutil.Process(pid).cpu_times()[:4])  # its children's too: the server forks
                self._peak[pid] = _peak_mb(pid)
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                pass  # it left: what was seen last counts

    def look_at_log(self) -> None:
        """See how the append-only file grew; call it now and then, it shrinks when the server rewrites it."""
        info: Any = self._client.info("persistence")
        size = info.get("aof_current_size", 0)
        self._written += max(0, size - self._log)
        self._log = size

    def stop(self, rollouts: int) -> Used:
        """The interval ends; returns what was used, for each of some rollouts."""
        took, busy = time.monotonic() - self._began[0], _busy() - self._began[1]
        self.look()
        self.look_at_log()
        own = sum(self._last[pid] - self._first[pid] for pid in self._roles)
        after = self._server()
        grown = {key: (after[key] - self._before[key]) / rollouts for key in ("in", "out")}
        calls = {
            name: (count - self._before["calls"].get(name, 0)) / rollouts for name, count in sorted(after["calls"].items())
        }
        calls = {name: round(count, 3) for name, count in calls.items() if count >= 0.001}
        used = Used(
            {}, {}, {}, after["peak"], sum(calls.values()), 0, 0, calls, grown["in"], grown["out"], self._written / rollouts, 0
        )
        used.others = max(0.0, busy - own) / took
        used.scripts, used.reads = calls.get("evalsha", 0), calls.get("xreadgroup", 0)
        for pid, role in self._roles.items():
            used.cpu[role] = used.cpu.get(role, 0.0) + (self._last[pid] - self._first[pid]) * 1000 / rollouts
            used.processes[role] = used.processes.get(role, 0) + 1
            used.peak_mb[role] = max(used.peak_mb.get(role, 0.0), self._peak[pid])
        return used

    def _server(self) -> dict[str, Any]:
        info: Any = self._client.info("everything")
        return {
            "calls": {key[8:]: value["calls"] for key, value in info.items() if key.startswith("cmdstat_")},
            "in": info["total_net_input_bytes"],
            "out": info["total_net_output_bytes"],
            "aof": info.get("aof_current_size", 0),
            "peak": info["used_memory_peak"] / 2**20,
        }


def _busy() -> float:
    """Seconds that this machine's cores have been busy."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    found = _PEAK.search(status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else psutil.Process(pid).memory_info().rss / 2**20
