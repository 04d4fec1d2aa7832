"""Imports of these tests' executors: an environment whose tools misbehave, and a stand-in for `gymq.runtime.reply`."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import msgspec
from gymq_workers.executor import parent, task

from gymq.api.environment import Environment, Score, hook, tool
from gymq.process.sandbox import run_program
from gymq.wire.calls import encode

#: Eight processes in sessions of their own, each of which replaces itself; argv: a marker. Not for ever: if the test is
#: killed, nobody else would end them.
BOMB = """
import os, signal, sys, time
end = time.monotonic() + 30
for _ in range(3):
    os.fork()
while time.monotonic() < end:
    os.setsid() if os.getpgrp() != os.getpid() else None
    if os.fork():
        os._exit(0)
    time.sleep(0.01)
"""


def send_sync(client, call, reply):
    """Stand-in for `gymq.runtime.reply.send_sync`: replies go to a list."""
    client.do(lambda server: server.rpush("test:replies", msgspec.msgpack.encode([call.id, encode(reply), time.time()])))


parent.send_sync = task.send_sync = send_sync


class Count(msgspec.Struct):
    value: int = 0


class Wild(Environment):
    name = "wild"
    State = Count

    @tool(isolated=True)
    def add(self, n: int, state: Count) -> dict:
        """Add.

        Args:
            n: how much.
        """
        state.value += n
        return {"pid": os.getpid(), "pgid": os.getpgrp(), "value": state.value}

    @tool(isolated=True)
    def spin(self) -> str:
        """Never end."""
        while True:
            pass

    @tool(isolated=True)
    def stubborn(self) -> str:
        """Never end, and ignore what asks for it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(100)

    @tool(isolated=True)
    def leave(self, code: int) -> str:
        """End the process."""
        os._exit(code)

    @tool(isolated=True)
    def politely_leave(self) -> str:
        """Raise SystemExit."""
        sys.exit(3)

    @tool(isolated=True)
    def kill_self(self, number: int) -> str:
        """Die of a signal."""
        os.kill(os.getpid(), number)
        return "alive"

    @tool(isolated=True)
    def hog(self, mib: int) -> str:
        """Take memory."""
        held = bytearray(mib << 20)
        held[::4096] = b"x" * len(held[::4096])
        return f"{len(held) >> 20} MiB"

    @tool(isolated=True)
    def breed(self, marker: str, how: str, then: str) -> str:
        """Start processes that outlive the call: in the group, or in a session of their own; then end, hang or die."""
        program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
        session = how == "session"
        for _ in range(2):
            subprocess.Popen([sys.executable, "-c", program, marker], start_new_session=session)
        time.sleep(1)
        if then == "hang":
            time.sleep(300)
        if then == "die":
            os._exit(1)
        return "left them"

    @tool(isolated=True)
    def fail(self) -> str:
        """Raise."""
        raise ValueError("no\nsuch thing")

    @tool(isolated=True)
    def nap(self, seconds: float) -> str:
        """Sleep."""
        time.sleep(seconds)
        return f"slept, {os.getpid()}"

    @tool(isolated=True)
    def block(self) -> str:
        """Never end, and take nothing."""
        threading.Event().wait()
        return "woke"

    @tool(isolated=True)
    def hold_the_gil(self) -> str:
        """Never let another thread run."""
        return str(ctypes.PyDLL(None).sleep(300))

    @tool(isolated=True)
    def backtrack(self) -> str:
        """Match a pattern for ever, in C."""
        return str(re.match(r"(a+)+$", "a" * 64 + "b"))

    @tool(isolated=True)
    def fork_bomb(self, marker: str) -> str:
        """Fork, and fork again, with no group in common."""
        subprocess.Popen([sys.executable, "-c", BOMB, marker])
        time.sleep(300)
        return "alive"

    @tool(isolated=True)
    def allocate(self) -> str:
        """Take memory without end."""
        held = []
        while True:
            held.append(bytes(64 << 20))

    @tool(isolated=True)
    def shout(self, mib: int, descriptor: int) -> str:
        """Print."""
        for _ in range(mib):
            os.write(descriptor, b"x" * (1 << 20))
        return "said"

    @tool(isolated=True)
    def give(self, mib: int, form: str) -> str:
        """Return much."""
        return "x" * (mib << 20) if form == "text" else ["x" * (1 << 20)] * mib

    @tool(isolated=True)
    def close_all(self) -> str:
        """Close all files, sockets too."""
        os.closerange(0, 4096)
        return "closed"

    @tool(isolated=True)
    def delete_temporary(self) -> str:
        """Delete the temporary folder."""
        shutil.rmtree(tempfile.gettempdir())
        return "deleted"

    @tool(isolated=True)
    def write(self, mib: int) -> str:
        """Leave a file."""
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.truncate(mib << 20)
        return file.name

    @tool(isolated=True)
    def overflow(self) -> str:
        """Let the C stack overflow."""
        sys.setrecursionlimit(1 << 30)
        deep = []
        for _ in range(300_000):
            deep = [deep]
        return repr(deep)

    @tool(isolated=True)
    def program(self, code: str) -> dict:
        """Run a program in the sandbox."""
        ran = run_program(["python", "-c", code], seconds=20)
        return {"stdout": ran.stdout, "walls": ran.walls, "reason": ran.reason}

    @tool(isolated=True)
    def niceness(self) -> int:
        """Tell it."""
        return os.nice(0)

    @hook(isolated=True)
    def verify(self, state: Count) -> Score:
        return Score(reward=float(state.value), metrics={"pid": os.getpid()})
