"""What the executors of these tests import: an environment whose tools misbehave, and a stand-in for `gymq.reply`."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import msgspec
from gymq_workers.executor import parent

from gymq.call import encode
from gymq.environment import Environment, Score, hook, tool


def send_sync(client, call, reply):
    """Stand-in for `gymq.reply.send_sync`: replies go to a list."""
    client.do(lambda server: server.rpush("test:replies", msgspec.msgpack.encode([call.id, encode(reply), time.time()])))


parent.send_sync = send_sync


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
        time.sleep(0.2)
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

    @hook(isolated=True)
    def verify(self, state: Count) -> Score:
        return Score(reward=float(state.value), metrics={"pid": os.getpid()})
