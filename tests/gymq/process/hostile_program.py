"""A program that tries to get out, and prints as JSON what it managed; run in the sandbox by test_sandbox.py."""

import ctypes
import json
import os
import socket
import sys

secret, pid, port, *files = sys.argv[1:]
managed = []


def attempt(name, what):
    try:
        if what():
            managed.append(name)
    except Exception:
        pass


def environments():
    pids = {name for name in os.listdir("/proc") if name.isdigit()} | {"1", pid}
    for one in pids - {str(os.getpid())}:
        try:
            with open(f"/proc/{one}/environ", "rb") as file:
                if secret.encode() in file.read():
                    return True
        except OSError:
            pass
    return False


def reads(path):
    with open(path, "rb") as file:
        return file.read(1)


def dials(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as dialler:
        dialler.settimeout(2)
        dialler.connect(address)
    return True


def writes(path):
    with open(path, "w") as file:
        file.write("1")
    return True


def fills(most):
    total = 0
    try:
        for number in range(1000):
            with open(f"f{number}", "wb", buffering=0) as file:
                try:
                    for _ in range(1000):
                        total += file.write(b"x" * (1 << 20))
                except OSError as error:
                    if error.errno != 27:
                        raise
            if total > most:
                return True
    except OSError:
        return False
    finally:
        for name in os.listdir("."):
            if name.startswith("f"):
                os.unlink(name)


def breeds(most):
    children = []
    try:
        while len(children) < most:
            child = os.fork()
            if not child:
                os.read(pipe[0], 1)
                os._exit(0)
            children.append(child)
        return True
    except BlockingIOError:
        return False
    finally:
        os.write(pipe[1], b"x" * len(children))
        for child in children:
            os.waitpid(child, 0)


def hoards():
    return len(bytearray(1 << 30))


def sees_descriptors():
    return [name for name in os.listdir("/proc/self/fd") if int(name) > 3]


libc = ctypes.CDLL(None)
attempt("descriptors", sees_descriptors)
pipe = os.pipe()
attempt("variables", lambda: set(os.environ) - {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE"})
attempt("environ", environments)
for path in files:
    attempt(f"read {path}", lambda path=path: reads(path))
    attempt(f"list {path}", lambda path=path: os.path.basename(path) in os.listdir(os.path.dirname(path)))
for path in ("/x", "/usr/x", "/etc/x", "/dev/x", "/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", *files):
    attempt(f"write {path}", lambda path=path: writes(path))
attempt("redis", lambda: dials(socket.AF_INET, ("127.0.0.1", int(port))))
attempt("redis by ipv6", lambda: dials(socket.AF_INET6, ("::1", int(port))))
attempt("abstract socket", lambda: dials(socket.AF_UNIX, "\0gymq-test-" + port))
attempt("resolve", lambda: socket.getaddrinfo("example.com", 80))
attempt("dial", lambda: dials(socket.AF_INET, ("192.0.2.1", 80)))
attempt("signal", lambda: os.kill(int(pid), 0) is None)
attempt("trace pid 1", lambda: libc.ptrace(16, 1, 0, 0) == 0)
attempt("trace the caller", lambda: libc.ptrace(16, int(pid), 0, 0) == 0)
attempt("mount", lambda: libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == 0)
attempt("chroot", lambda: os.chroot("/tmp") is None)
attempt("root", lambda: os.setuid(0) is None)
attempt("nice", lambda: os.nice(-5) is not None)
attempt("disk", lambda: fills(40 << 20))
attempt("processes", lambda: breeds(40))
attempt("memory", hoards)
# Last: who has one may do in it what it likes.
attempt("user namespace", lambda: libc.unshare(0x10000000) == 0)
print(json.dumps(managed))
