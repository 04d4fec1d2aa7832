"""Escapes from public write-ups, tried from inside by test_escapes.py; prints as JSON what those that came too far managed."""

import ctypes
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import sys
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
INTEL = platform.machine() == "x86_64"
#: The numbers of calls on x86_64 and aarch64.
NUMBERS = {
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "clone": (56, 220),
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "kcmp": (312, 272),
    "memfd_secret": (447, 447),
}
#: A file of the system that every program reads.
SHARED = "/usr/bin/env"
ESCAPES = []


def escape(function):
    ESCAPES.append(function)
    return function


def call(name, *arguments):
    """Make a system call; a number is a failure if it is below 0."""
    number = NUMBERS[name][0 if INTEL else 1]
    return libc.syscall(*(ctypes.c_long(one) if isinstance(one, int) else one for one in (number, *arguments)))


def works(function, *arguments):
    try:
        function(*arguments)
    except (OSError, ValueError):
        return False
    return True


def writable(path):
    return works(lambda: os.close(os.open(path, os.O_WRONLY)))


def seen(path):
    return os.path.exists(path) and Path(path).read_text()


def reaches(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as dialler:
        dialler.settimeout(1)
        dialler.connect(address)


@escape
def overwrite_the_runtime():
    """CVE-2019-5736: write pid 1's executable, by /proc/1/exe or one's own."""
    return [path for path in ("/proc/1/exe", "/proc/self/exe", os.path.realpath("/proc/self/exe")) if writable(path)]


@escape
def leave_by_a_leaked_descriptor():
    """CVE-2024-21626: a descriptor or a working folder of the runtime that lies outside."""
    here = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd") if int(name) > 2]
    pid_1 = [f"/proc/1/{name}" for name in ("cwd", "root", "fd")]
    outside = [path for path in here if os.path.exists(path) and os.path.isdir(path)]
    return outside + [path for path in pid_1 if works(os.listdir, path + "/")]


@escape
def become_the_release_agent():
    """CVE-2022-0492: mount a cgroup hierarchy in a user namespace and name a program that the kernel runs."""
    libc.unshare(0x10000000 | 0x02000000)
    return libc.mount(b"cgroup", b"/tmp", b"cgroup", 0, b"memory") == 0 or libc.mount(b"x", b"/tmp", b"cgroup2", 0, None) == 0


@escape
def let_the_kernel_run_a_program():
    """CVE-2022-21505 and older: core_pattern, modprobe, binfmt_misc, sysrq, uevent_helper, a namespace's own limits."""
    names = (
        "kernel/core_pattern",
        "kernel/modprobe",
        "kernel/hostname",
        "kernel/shmall",
        "kernel/msgmni",
        "fs/binfmt_misc/register",
    )
    paths = [f"/proc/sys/{name}" for name in names]
    return [
        path for path in (*paths, "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/proc/1/oom_score_adj") if writable(path)
    ]


@escape
def open_by_handle():
    """Shocker (2014): open the machine's root by its handle."""
    handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, 1, 2) + bytes(120))
    descriptor = os.open("/usr", os.O_RDONLY)
    return call("open_by_handle_at", descriptor, handle, 0) >= 0 or (
        call("name_to_handle_at", descriptor, b"", handle, ctypes.byref(ctypes.c_int()), 0x1000) >= 0
    )


@escape
def type_into_the_terminal():
    """CVE-2017-5226, CVE-2019-10063: TIOCSTI, with bits that the kernel ignores and a filter may not; a terminal at all."""
    done = [number for number in (0x5412, 0x5412 | 1 << 32, 0x541C) if libc.ioctl(0, ctypes.c_ulong(number), b"x") == 0]
    return done + [path for path in ("/dev/tty", "/dev/ptmx", "/dev/console") if os.path.exists(path)]


@escape
def mount_by_the_new_calls():
    """CVE-2021-41133 (Flatpak): a filter that forbids mount and forgets its successors."""
    return call("fsopen", b"tmpfs", 0) >= 0 or call("open_tree", -100, b"/tmp", 1) >= 0


@escape
def make_a_user_namespace():
    """CVE-2021-3493, CVE-2023-2640, CVE-2022-0185: capabilities in a new user namespace open overlayfs and more."""
    flags = 0x10000000 | 0x00020000
    if libc.unshare(flags) == 0:
        return "unshare"
    pid = call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    arguments = ctypes.create_string_buffer(struct.pack("=11Q", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0))
    other = call("clone3", arguments, 88)
    if other == 0:
        os._exit(0)
    return [name for name, made in (("clone", pid), ("clone3", other)) if made > 0]


@escape
def reach_the_packet_filters():
    """CVE-2024-1086, CVE-2023-32233: nf_tables by netlink."""
    return works(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close())


@escape
def open_strange_sockets():
    """CVE-2017-7308, CVE-2020-14386 (packet), CVE-2010-3904 (RDS), CVE-2016-8655, AF_ALG, AF_VSOCK: all families but four."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
    plain = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
    opened = [(f, k) for f in set(range(1, 46)) - plain for k in kinds if works(lambda: socket.socket(f, k).close())]  # noqa: B023
    raw = [f for f in (socket.AF_INET, socket.AF_INET6) if works(lambda: socket.socket(f, socket.SOCK_RAW, 1).close())]  # noqa: B023
    return opened + raw


@escape
def use_io_uring():
    """CVE-2022-29582, CVE-2023-2598 and kCTF: io_uring, past every filter."""
    return call("io_uring_setup", 1, ctypes.create_string_buffer(120)) >= 0


@escape
def stop_the_kernel_in_a_copy():
    """CVE-2021-22555, CVE-2016-6187 and others: userfaultfd, to win a race."""
    return call("userfaultfd", 1) >= 0 or call("userfaultfd", 0) >= 0 or writable("/dev/userfaultfd")


@escape
def load_bpf():
    """CVE-2021-3490, CVE-2017-16995; perf events: CVE-2013-2094."""
    map_of_one = ctypes.create_string_buffer(struct.pack("=4I", 2, 4, 4, 1) + bytes(112))
    counter = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 128, 0) + bytes(112))
    return call("bpf", 0, map_of_one, 128) >= 0 or call("perf_event_open", counter, 0, -1, -1, 0) >= 0


@escape
def overflow_a_keyring():
    """CVE-2016-0728: join keyrings until their counter overflows; keys of others besides."""
    return (
        call("keyctl", 1, 0) >= 0
        or call("add_key", b"user", b"x", b"x", 1, -3) >= 0
        or (works(open, "/proc/keys") and (bool(open("/proc/keys").read())))
    )


@escape
def use_another_table_of_calls():
    """Chrome issue 2012 and many since: calls by the 32-bit or x32 table, where the filter's numbers mean others."""
    if not INTEL:
        return False
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
    old = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    return old > 0 or libc.syscall(ctypes.c_long(0x40000000 | 39)) > 0


@escape
def write_a_shared_file_by_a_race():
    """CVE-2016-5195 (Dirty COW): write a private mapping of a read-only file by /proc/self/mem."""
    with open(SHARED, "rb") as file:
        before = file.read(64)
        private = libc.mmap
        private.restype = ctypes.c_void_p
        address = private(None, ctypes.c_size_t(4096), 1, 2, file.fileno(), ctypes.c_long(0))
    works(lambda: os.pwrite(os.open("/proc/self/mem", os.O_RDWR), b"gymq", address))
    with open(SHARED, "rb") as file:
        return file.read(64) != before


@escape
def write_a_shared_file_by_a_pipe():
    """CVE-2022-0847 (Dirty Pipe): append to a page of a file in a pipe."""
    reader, writer = os.pipe()
    for _ in range(16):  # every buffer of the pipe has been used once
        os.write(writer, bytes(4096))
        os.read(reader, 4096)
    with open(SHARED, "rb") as file:
        before = file.read(64)
        os.splice(file.fileno(), writer, 1, offset_src=4)
        os.write(writer, b"gymq")
    with open(SHARED, "rb") as file:
        return file.read(64) != before


@escape
def take_what_pid_1_has():
    """CVE-2019-13272, CVE-2016-8659 (bubblewrap): trace, read or rob the process that made the walls."""
    found = [path for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/maps") if works(Path(path).read_bytes)]
    vector = (ctypes.c_ulong * 2)(0x400000, 8)
    process = call("pidfd_open", 1, 0)
    tried = {
        "ptrace": libc.ptrace(16, 1, 0, 0),
        "pidfd_getfd": call("pidfd_getfd", process, 1, 0),
        "process_vm_readv": call("process_vm_readv", 1, vector, 1, vector, 1, 0),
        "kcmp": call("kcmp", 1, os.getpid(), 0, 1, 1),
    }
    return found + [name for name, done in tried.items() if done >= 0]


@escape
def kill_pid_1_by_its_limits():
    """prlimit on a process of the same user: no CPU time, no memory, no files."""
    kinds = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
    return [kind for kind in kinds if works(resource.prlimit, 1, kind, (1, 1))]


@escape
def gain_rights_by_a_file():
    """Set-user-id files and file capabilities (GTFOBins), and one's own; CVE-2021-4034 needs one."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    left = [name for name in ("CapEff", "CapPrm", "CapInh", "CapAmb") if int(status[name], 16)]
    if status["NoNewPrivs"].strip() != "1":
        left.append("privileges")
    own = "/tmp/own"
    with open(own, "w") as file:
        file.write("x")
    os.chmod(own, 0o4755)
    flags = os.statvfs("/tmp").f_flag & os.statvfs("/usr").f_flag
    return left + ([] if flags & os.ST_NOSUID and flags & os.ST_NODEV else ["a set-user-id file counts"])


@escape
def climb_out_of_the_root():
    """The classic chroot breakout, and `..` past every root that this process can name."""
    root = os.open("/", os.O_RDONLY)
    os.makedirs("/tmp/deeper", exist_ok=True)
    done = works(os.chroot, "/tmp/deeper")
    above = os.open("../../../../..", os.O_RDONLY, dir_fd=root)
    return (
        done
        or not os.path.samestat(os.fstat(root), os.fstat(above))
        or os.path.exists("/proc/root")
        or os.path.exists("/etc/passwd")
    )


@escape
def make_a_disk():
    """A device node of the machine's disk (CVE-2020-13401 and every privileged container)."""
    made = [n for n in (8, 253, 254, 259) if works(os.mknod, f"/tmp/disk{n}", stat.S_IFBLK | 0o600, os.makedev(n, 0))]
    return made + [
        name for name in os.listdir("/dev") if not stat.S_ISCHR(os.stat(f"/dev/{name}").st_mode) and name in ("sda", "mem")
    ]


@escape
def join_other_namespaces():
    """setns by /proc/1/ns and by a pidfd (CVE-2022-1227)."""
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    opened = [kind for kind in kinds if works(os.open, f"/proc/1/ns/{kind}", os.O_RDONLY)]
    return opened or libc.setns(call("pidfd_open", 1, 0), 0x00020000) == 0


@escape
def call_a_daemon():
    """CVE-2020-15257 (containerd-shim) and the docker socket: UNIX sockets of others, abstract or in a folder."""
    with open("/proc/net/unix") as file:
        names = [line.split()[7] for line in list(file)[1:] if len(line.split()) > 7]
    paths = [
        path
        for path in ("/run", "/var/run/docker.sock", "/run/dbus", "/run/containerd/containerd.sock")
        if os.path.exists(path)
    ]
    return names + paths


@escape
def ask_the_cloud():
    """The metadata service of a cloud (Capital One, 2019), the neighbours, and the machine itself."""
    places = [(socket.AF_INET, ("169.254.169.254", 80)), (socket.AF_INET, ("127.0.0.1", int(sys.argv[1])))]
    places += [(socket.AF_INET6, ("fd00:ec2::254", 80)), (socket.AF_INET, ("10.0.0.1", 443))]
    return [place[1][0] for place in places if works(reaches, *place)]


@escape
def outgrow_the_limits():
    """Raise one's own limits, run in real time, come before others, and live when memory ends."""
    tries = {
        "files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
        "processes": lambda: resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096)),
        "core": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)),
        "nice": lambda: os.setpriority(os.PRIO_PROCESS, 0, -1),
        "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "oom": lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000"),
    }
    return [name for name, what in tries.items() if works(what)]


@escape
def hoard_what_no_limit_counts():
    """System V's segments, semaphores and queues, POSIX queues, secret memory: bytes that belong to no process."""
    objects = [name for name in ("shmget", "semget", "msgget") if call(name, 0, 1, 0o1600) >= 0]
    attributes = ctypes.create_string_buffer(struct.pack("=8q", 0, 10, 8192, 0, 0, 0, 0, 0))
    return objects + [
        name
        for name, done in (
            ("mq_open", call("mq_open", b"q", 0o102, 0o600, attributes)),
            ("memfd_secret", call("memfd_secret", 0)),
        )
        if done >= 0
    ]


def attempt(function):
    """Run one in a process of its own, for at most five seconds; return what it managed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(5)
        said = ""
        try:
            done = function()
            said = str(done) if done else ""
        except Exception as error:
            said = f"!{error!r}" if not isinstance(error, OSError) else ""
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(child, 0)
    return said if os.waitstatus_to_exitcode(status) == 0 else f"ended with {os.waitstatus_to_exitcode(status)}"


print(json.dumps({function.__name__: said for function in ESCAPES if (said := attempt(function))}))
