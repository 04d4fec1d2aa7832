"""The inner side of `gymq.process.sandbox`: makes the walls, starts the program within them, and ends it at its limit.

Runs as a script in a fresh interpreter, `python -I -S namespace_init.py <config fd> <status fd>`, so that it may fork and
change its identity without harm to the caller. It imports nothing of gymq, and little else, since every run pays for each
import; hence one file.

    warden    this process. Waits for the end or the limit, then kills and cleans up.
    init      with namespaces: pid 1 of the new ones. It builds the file system; when it ends the kernel kills all within.
    program   no privileges, no other open files, its limits.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

#: Users of programs that root runs: this plus the warden's pid, so that no two at once are the same. Systemd's list of
#: ranges leaves these free.
FIRST_UID, PIDS = 1_900_000_000, 1 << 22

#: The same in a container that has the usual 65536 users.
FEW_UID, FEW_PIDS = 20_000, 40_000

#: The program's own user in a user namespace: any but 0.
INNER_UID = 1000

#: The niceness of programs, which are many and may spin beside a few workers that wait for mail.
NICE = 5

#: Open files of a program.
FILES = 256

#: Bytes of address space beyond the limit of memory, for mapped files and for what runtimes reserve and never use.
RESERVED = 4 * 1024**3

#: Inodes of the temporary folder: each takes about a kibibyte of the kernel's memory.
INODES = 16_384

#: Seconds that killing may take.
KILL_LIMIT = 5.0

#: The parts of the system that programs see, read-only, where they exist; `sandbox` adds others.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/certs")
DEVICES = ("null", "zero", "full", "random", "urandom")

# <linux/sched.h>
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
# <sys/mount.h>, <linux/mount.h>
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE, _DETACH = 2, 4, 8, 4096, 16384, 1 << 18, 2
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_SETATTR = -100, 0x8000, 442
# <sys/prctl.h>
_PDEATHSIG, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 36, 38

_libc = ctypes.CDLL(None, use_errno=True)


def _do(function: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0 on success."""
    if getattr(_libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _prctl(option: int, value: int) -> None:
    _do("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    _do("mount", source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data.encode())


def _protect(target: str, attributes: int, *, recursive: bool = True) -> None:
    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]

    setting = Attributes(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _do("syscall", _MOUNT_SETATTR, _AT_FDCWD, target.encode(), flags, ctypes.byref(setting), ctypes.c_size_t(32))


class NamespaceInit:
    """One run of a program.

    Args:
        config: the run's configuration, from `sandbox`.
        files: the program's files by name.
        status: the file descriptor for the report of its end.
    """

    def __init__(self, config: dict[str, Any], files: dict[str, bytes], status: int) -> None:
        self.config = config
        self.files = files
        self.status = status
        self.walls: str = config["walls"]
        self.deadline = time.monotonic() + config["seconds"]
        #: The program's user; None: the warden's.
        self.uid = _spare_uid() if os.geteuid() == 0 and self.walls != "weak" else None
        self.folder = "/tmp" if self.walls == "namespaces" else f"{config['tmp']}/gymq-sandbox-{os.getpid()}"

    def main(self) -> None:
        """Run the program until its end or its limit."""
        os.umask(0o077)
        with contextlib.suppress(OSError):  # the first to be killed where memory ends
            _write("/proc/self/oom_score_adj", "1000")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
        if self.walls == "namespaces":
            self._separate()
        else:
            _prctl(_SUBREAPER, 1)
        # After any change of identity, which would clear it.
        _prctl(_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self.config["parent"]:
            sys.exit()
        if self.walls == "namespaces":
            go, ready = os.pipe()
            child = os.fork()
            if not child:
                os.close(ready)
                self._guarded(lambda: self._init(go))
            os.close(go)
            os.write(ready, b"g")
            self._supervise(child)
            return
        if self.walls == "uid" and self.uid is None:
            raise OSError("this container has no users to spare")
        try:
            os.mkdir(self.folder, 0o700)
            self._write_files(self.folder)
            child = os.fork()
            if not child:
                self._guarded(self._program)
            self._supervise(child)
        finally:
            self._kill_all()
            # It copes with trees of any depth, and follows no link.
            os.spawnvp(os.P_WAIT, "rm", ["rm", "-rf", "--", self.folder])

    def report(self, **end: object) -> None:
        """Report the program's end, one JSON object a line; the first counts."""
        os.write(self.status, json.dumps(end).encode() + b"\n")

    def _guarded(self, body: Callable[[], object]) -> NoReturn:
        """Run a fork's body, and never return into the code of the process that forked."""
        try:
            body()
        except BaseException as error:
            self.report(failed=f"{error}")
        os._exit(1)

    # The warden.

    def _supervise(self, child: int) -> None:
        while True:
            left = self.deadline - time.monotonic()
            received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, max(left, 0))
            if received is not None and received.si_signo == signal.SIGCHLD:
                ended = dict(_reap())
                if child not in ended:
                    continue
                if self.walls != "namespaces":
                    self.report(exit=os.waitstatus_to_exitcode(ended[child]))
                return  # init has reported it
            self.report(exit=-signal.SIGKILL, timeout=True)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            if self.walls == "namespaces":
                os.waitpid(child, 0)  # reaped once all processes within are gone
            return

    def _kill_all(self) -> None:
        """Kill the program's remains: all processes of its user, or its descendants."""
        until = time.monotonic() + KILL_LIMIT
        while time.monotonic() < until:
            if self.uid is not None:
                killer = os.fork()
                if not killer:
                    try:
                        os.setresuid(self.uid, self.uid, self.uid)
                        os.kill(-1, signal.SIGKILL)
                    finally:
                        os._exit(0)
            else:
                for pid in _children():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            for _ in _reap():
                pass
            if not _children():
                return
            time.sleep(0.005)

    # Namespaces.

    def _separate(self) -> None:
        flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
        if self.uid is not None:
            _do("unshare", flags)
            return
        uid, gid = os.geteuid(), os.getegid()
        _do("unshare", flags | _NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{INNER_UID} {uid} 1")
        _write("/proc/self/gid_map", f"{INNER_UID} {gid} 1")

    def _init(self, go: int) -> None:
        _prctl(_PDEATHSIG, signal.SIGKILL)
        if os.read(go, 1) != b"g":
            return  # the warden died before the line above
        os.close(go)
        # The program may inspect processes of its own user only, and trace none with more rights.
        _prctl(_DUMPABLE, 0)
        self._build()
        program = os.fork()
        if not program:
            self._guarded(self._program)
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == program:
                self.report(exit=os.waitstatus_to_exitcode(status))
                os._exit(0)

    def _build(self) -> None:
        """Make a root that holds only what is named here, and enter it."""
        _mount("none", "/", None, _REC | _PRIVATE)
        base, root = "/proc", "/proc/root"
        _mount("tmpfs", base, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
        os.umask(0o022)
        os.mkdir(root)
        # Comes first: readable paths may lie in the real /tmp, and must not be given to the program's user.
        os.mkdir(f"{root}/tmp")
        owner = "" if self.uid is None else f",uid={self.uid},gid={self.uid}"
        size = f"size={self.config['disk']},nr_inodes={INODES},mode=700"
        _mount("tmpfs", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, size + owner)
        self._write_files(f"{root}/tmp")
        for path in (*SYSTEM, *ETC, *self.config["readable"]):
            if os.path.islink(path) and path in SYSTEM:
                os.symlink(os.readlink(path), root + path)
            elif os.path.exists(path) and not os.path.exists(root + path):
                self._bind(path, root + path)
        os.mkdir(f"{root}/dev")
        for name in DEVICES:
            _write(f"{root}/dev/{name}", "")
            _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
        for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
            os.symlink(target, f"{root}/dev/{name}")
        # Shared memory counts against the folder's bound.
        os.symlink("/tmp", f"{root}/dev/shm")
        os.mkdir(f"{root}/proc")
        with contextlib.suppress(OSError):  # a container may forbid it, and then /proc stays empty
            _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
            _write(f"{root}/proc/sys/kernel/shmall", str(self.config["disk"] // resource.getpagesize()))
        _protect(base, _ATTR_RDONLY, recursive=False)
        _do("sethostname", b"sandbox", ctypes.c_size_t(7))
        os.chdir(base)
        _do("pivot_root", b".", b".")
        _do("umount2", b".", _DETACH)
        # Not the root of the mounts: from such a place no user namespace, and no capability with it, can be made.
        os.chroot("/root")
        os.chdir("/tmp")

    @staticmethod
    def _bind(source: str, target: str) -> None:
        if os.path.isdir(source):
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _write(target, "")
        _mount(source, target, None, _BIND | _REC)
        _protect(target, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)

    def _write_files(self, folder: str) -> None:
        for name, data in self.files.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(data)
            os.chmod(path, 0o755)
        if self.uid is not None:
            for path, _, names in os.walk(folder):
                for entry in (path, *(os.path.join(path, name) for name in names)):
                    os.chown(entry, self.uid, self.uid)

    # The program.

    def _program(self) -> None:
        config = self.config
        os.setsid()
        os.umask(0o022)
        os.chdir(self.folder)
        with contextlib.suppress(OSError):  # where the kernel schedules sessions as groups, each has a niceness of its own
            _write("/proc/self/autogroup", str(NICE))
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        cpu = math.ceil(config["seconds"])
        limits = {
            resource.RLIMIT_CPU: (cpu, cpu + 1),
            resource.RLIMIT_DATA: (config["memory"],) * 2,
            resource.RLIMIT_AS: (config["memory"] + RESERVED,) * 2,
            resource.RLIMIT_FSIZE: (config["disk"],) * 2,
            resource.RLIMIT_NOFILE: (FILES,) * 2,
            resource.RLIMIT_CORE: (0, 0),
            resource.RLIMIT_MSGQUEUE: (0, 0),
        }
        # The limit counts all processes of a user, and the warden's user may have many others.
        if self.walls != "weak":
            limits[resource.RLIMIT_NPROC] = (config["processes"],) * 2
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        for kind, wanted in limits.items():
            most = resource.getrlimit(kind)[1]
            soft, hard = wanted if most == resource.RLIM_INFINITY else (min(limit, most) for limit in wanted)
            resource.setrlimit(kind, (soft, hard))
        _prctl(_NO_NEW_PRIVS, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        environment = {"PATH": config["path"], "HOME": self.folder, "TMPDIR": self.folder, "LANG": "C.UTF-8"}
        try:
            os.execvpe(config["argv"][0], config["argv"], environment)
        except OSError as error:
            os.write(2, f"cannot run {config['argv'][0]!r}: {error.strerror}\n".encode())
            os._exit(127)


def _spare_uid() -> int | None:
    """Return a user that no other program has; None: this user namespace maps too few."""
    with open("/proc/self/uid_map") as file:
        mapped = [(int(first), int(first) + int(count)) for first, _, count in map(str.split, file)]
    for first, many in ((FIRST_UID, PIDS), (FEW_UID, FEW_PIDS)):
        if any(start <= first and first + many <= end for start, end in mapped):
            return first + os.getpid() % many
    return None


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _reap() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _read(descriptor: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    with open(descriptor, "rb") as file:
        config = json.loads(file.readline())
        return config, {name: file.read(size) for name, size in config["files"]}


if __name__ == "__main__":
    config_fd, status_fd = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(status_fd, False)
    run = NamespaceInit(*_read(config_fd), status_fd)
    try:
        run.main()
    except OSError as problem:
        run.report(failed=f"{problem}")
