"""The warden of a run: makes what it can of the walls, waits for the program's end or its limit, then kills and cleans up."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any, NoReturn

from . import cgroup, kernel
from .program import Program, become, lower_session, open_session, report
from .root import Root

#: Users of programs that root runs: this plus the warden's pid, so that no two at once are the same. Systemd's list of
#: ranges leaves these free.
FIRST_UID, PIDS = 1_900_000_000, 1 << 22

#: The same in a container that has the usual 65536 users.
FEW_UID, FEW_PIDS = 20_000, 40_000

#: The program's own user in a user namespace: any but 0.
INNER_UID = 1000

#: Seconds that killing may take.
KILL_LIMIT = 5.0


class Warden:
    """One run of a program.

    Args:
        config: the run's configuration, from `sandbox`.
        data: the program's own data, which only the program itself reads.
        status: the descriptor for reports.
    """

    def __init__(self, config: dict[str, Any], data: IO[bytes], status: int) -> None:
        self.config = config
        self.status = status
        self.walls: str = config["walls"]
        self.deadline = time.monotonic() + config["seconds"]
        #: The program's user; None: the warden's.
        self.uid = _spare_uid() if os.geteuid() == 0 and self.walls != "weak" else None
        self.folder = "/tmp" if self.walls == "namespaces" else f"{config['tmp']}/gymq-sandbox-{os.getpid()}"
        self.program = Program(config, data, status, self.uid, self.folder)

    def main(self) -> None:
        """Run the program until its end or its limit.

        Raises:
            OSError: the walls cannot be made.
        """
        # Python's only handler; a signal with one reaches even pid 1 of a namespace. All others are ignored or default.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.umask(0o077)
        with suppress(OSError):  # the first to be killed where memory ends
            kernel.write_text("/proc/self/oom_score_adj", "1000")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
        # Its folder lies in memory, too.
        bound = self.config["memory"] + self.config["disk"] + cgroup.BASE
        group = cgroup.make(bound, self.config["processes"] + 1)
        try:
            self._run(group)
        finally:
            if group is not None:
                group.remove()

    def _run(self, group: cgroup.Cgroup | None) -> None:
        if self.walls == "namespaces":
            self._separate()
        else:
            kernel.prctl(kernel.SUBREAPER, 1)
        # After any change of identity, which would clear it.
        kernel.prctl(kernel.PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self.config["parent"]:
            sys.exit()
        if self.walls == "namespaces":
            self._supervise(self._fork(self._init, group))
            return
        if self.walls == "uid" and self.uid is None:
            raise OSError(errno.EPERM, "this container has no users to spare")
        try:
            os.mkdir(self.folder, 0o700)
            if self.uid is not None:
                os.chown(self.folder, self.uid, self.uid)
            self._supervise(self._fork(self._program, group))
        finally:
            self._kill_all()
            # It copes with trees of any depth, and follows no link.
            os.spawnvp(os.P_WAIT, "rm", ["rm", "-rf", "--", self.folder])
            if self.uid is not None:
                self._remove_traces(self.uid)

    def _fork(self, body: Callable[[int], object], group: cgroup.Cgroup | None) -> int:
        """Fork a process that reads one byte from a pipe once it is in its group, and return its pid."""
        go, ready = os.pipe()
        child = os.fork()
        if not child:
            os.close(ready)
            if group is not None:
                with suppress(OSError):
                    group.enter()
            self._guarded(lambda: body(go))
        os.close(go)
        if group is not None:
            with suppress(OSError):
                group.add(child)
        with suppress(BrokenPipeError):  # it has failed, and says so
            os.write(ready, b"g")
        os.close(ready)
        return child

    def _guarded(self, body: Callable[[], object]) -> NoReturn:
        """Run a fork's body, and never return into the code of the process that forked."""
        try:
            body()
        except BaseException as error:
            report_failure(self.status, error)
        os._exit(1)

    def _supervise(self, child: int) -> None:
        while True:
            left = self.deadline - time.monotonic()
            received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, max(left, 0))
            if received is not None and received.si_signo == signal.SIGCHLD:
                ended = dict(_reap())
                if child not in ended:
                    continue
                if self.walls != "namespaces":
                    report(self.status, exit=os.waitstatus_to_exitcode(ended[child]))
                return  # init has reported it
            report(self.status, exit=-signal.SIGKILL, timeout=True)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            if self.walls == "namespaces":
                os.waitpid(child, 0)  # reaped once all processes within are gone
            return

    def _kill_all(self) -> None:
        """Kill the program's remains: all processes of its user, or its descendants."""
        until = time.monotonic() + KILL_LIMIT
        while time.monotonic() < until:
            if self.uid is not None:
                self._as_user(self.uid, lambda: os.kill(-1, signal.SIGKILL))
            else:
                for pid in _children():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            for _ in _reap():
                pass
            if not _children():
                return
            time.sleep(0.005)

    def _remove_traces(self, uid: int) -> None:
        """Remove what the program left outside its folder: its user's number comes again."""
        from . import traces  # for these walls only

        os.waitpid(self._as_user(uid, lambda: traces.remove(uid, [self.config["tmp"]])), 0)

    @staticmethod
    def _as_user(uid: int, body: Callable[[], object]) -> int:
        """Fork a process that does something as a user, and return its pid."""
        child = os.fork()
        if not child:
            try:
                become(uid)
                body()
            finally:
                os._exit(0)
        return child

    def _separate(self) -> None:
        flags = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS
        if self.uid is not None:
            kernel.call("unshare", flags)
            return
        uid, gid = os.geteuid(), os.getegid()
        kernel.call("unshare", flags | kernel.NEWUSER)
        kernel.write_text("/proc/self/setgroups", "deny")
        kernel.write_text("/proc/self/uid_map", f"{INNER_UID} {uid} 1")
        kernel.write_text("/proc/self/gid_map", f"{INNER_UID} {gid} 1")

    def _program(self, go: int) -> None:
        if os.read(go, 1) == b"g":
            self.program.run()

    def _init(self, go: int) -> None:
        """Be pid 1 of the namespaces: build the file system, start the program, report its end."""
        kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
        os.setsid()
        session = open_session()
        # The program may inspect processes of its own user only, and trace none with more rights.
        kernel.prctl(kernel.DUMPABLE, 0)
        config = self.config
        Root(config["python"], config["covered"], config["readable"], config["disk"], self.uid).enter()
        # Only now: to be moved into a group may take a while, in which this process had better things to do.
        if os.read(go, 1) != b"g":
            return  # the warden died before the first line
        os.close(go)
        # Not before: the walls are made at the caller's priority.
        lower_session(session)
        program = os.fork()
        if not program:
            self._guarded(self.program.run)
        # From here on only the program's end can be reported, whatever happens to this process.
        try:
            while True:
                pid, status = os.waitpid(-1, 0)
                if pid == program:
                    report(self.status, exit=os.waitstatus_to_exitcode(status))
                    return
        finally:
            os._exit(0)


def report_failure(status: int, error: BaseException) -> None:
    """Report that the walls cannot be made.

    Args:
        status: the descriptor for reports.
        error: why; `sandbox` tells by its number what the machine forbids from what it lacks at the moment.
    """
    report(status, failed=f"{error}" or type(error).__name__, errno=getattr(error, "errno", None))


def main() -> None:
    """Run a program; the arguments are the descriptors of its configuration and for reports."""
    config_fd, status = map(int, sys.argv[-2:])
    os.set_inheritable(config_fd, False)
    os.set_inheritable(status, False)
    with open(config_fd, "rb") as data:
        try:
            Warden(json.loads(data.readline()), data, status).main()
        except Exception as error:
            report_failure(status, error)


def _spare_uid() -> int | None:
    """Return a user that no other program has; None: this user namespace maps too few."""
    with open("/proc/self/uid_map") as file:
        mapped = [(int(first), int(first) + int(count)) for first, _, count in map(str.split, file)]
    for first, many in ((FIRST_UID, PIDS), (FEW_UID, FEW_PIDS)):
        if any(start <= first and first + many <= end for start, end in mapped):
            return first + os.getpid() % many
    return None


def _reap() -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []
