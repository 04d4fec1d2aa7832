"""More than one server on loopback: a Cluster, a master with a replica and a Sentinel, TLS before a server."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from gymq.process.child_process import ChildProcess
from gymq.process.embedded_redis import PORTS, server_binary
from tests.support.waiting import wait_until

#: Slots of a Cluster.
SLOTS = 16384


def free_port() -> int:
    """A port of loopback that nobody has now, below those of outgoing connections."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One server with options of its own, started and killed at will.

    Args:
        folder: where its data lie; made here.
        options: of its configuration.
        arguments: behind the configuration's name, such as `--sentinel`.
    """

    def __init__(self, folder: Path, *arguments: str, password: str = "", **options: object) -> None:
        self.port = free_port()
        self.password = password
        self.folder = folder
        self._arguments = arguments
        folder.mkdir(parents=True)
        lines = [f"bind 127.0.0.1\nport {self.port}\ndir {folder}\ndaemonize no"]
        lines += [f"{name.replace('_', '-')} {value}" for name, value in options.items()]
        lines += [f"requirepass {password}\nmasterauth {password}"] if password else []
        (folder / "server.conf").write_text("\n".join(lines) + "\n")
        self.child: ChildProcess | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        argv = [str(server_binary()), str(self.folder / "server.conf"), *self._arguments]
        self.child = ChildProcess(argv, {}, "server", self.folder / "server.log", death_signal=signal.SIGTERM)
        wait_until(self._answers, 20, f"the server of {self.folder}")

    def kill(self) -> None:
        """kill -9."""
        if self.child is not None:
            self.child.kill()

    def client(self) -> Any:
        """A connection to it."""
        return Redis(
            host="127.0.0.1",
            port=self.port,
            password=self.password or None,
            socket_timeout=5,
            retry=Retry(NoBackoff(), 0),
        )

    def ask(self, *command: object) -> Any:
        """Send it one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def _answers(self) -> bool:
        with suppress(RedisError):
            return bool(self.ask("PING"))
        return False


class Cluster:
    """A Cluster of three masters, the slots divided evenly.

    Args:
        folder: where their data lie.
    """

    def __init__(self, folder: Path) -> None:
        self.password = secrets.token_hex(8)
        self.nodes = []
        for n in range(3):
            bus = free_port()
            node = Server(
                folder / f"node{n}",
                password=self.password,
                cluster_enabled="yes",
                cluster_port=bus,
                cluster_node_timeout=2000,
                appendonly="yes",
                save='""',
            )
            self.nodes.append(node)
            node.ask("CLUSTER", "ADDSLOTSRANGE", SLOTS * n // 3, SLOTS * (n + 1) // 3 - 1)
            if n:
                node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self._bus)
            else:
                self._bus = bus
        wait_until(lambda: all(self._whole(node) for node in self.nodes), 30, "the Cluster")

    def url(self, shards: int = 3) -> str:
        """Its address; two of its nodes are named, which know the third."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis-cluster://:{self.password}@{hosts}?shards={shards}"

    def kill(self) -> None:
        """End it."""
        for node in self.nodes:
            node.kill()

    @staticmethod
    def _whole(node: Server) -> bool:
        with node.client() as client:
            info = client.execute_command("CLUSTER", "INFO")
        told = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
        return told["cluster_state"] == "ok" and told["cluster_known_nodes"] == "3"


class Watched:
    """A master, its replica, and a Sentinel that makes the replica the master when the master is silent for a second.

    Args:
        folder: where their data lie.
    """

    NAME = "gymq"

    def __init__(self, folder: Path) -> None:
        password = secrets.token_hex(8)
        self.master = Server(folder / "master", password=password, appendonly="yes", save='""')
        self.replica = Server(
            folder / "replica", password=password, appendonly="yes", save='""', replicaof=f"127.0.0.1 {self.master.port}"
        )
        wait_until(lambda: self.replica.ask("ROLE")[3] in (b"connected", "connected"), 20, "the replica")
        self.sentinel = Server(
            folder / "sentinel",
            "--sentinel",
            sentinel=(
                f"monitor {self.NAME} 127.0.0.1 {self.master.port} 1\n"
                f"sentinel auth-pass {self.NAME} {password}\n"
                f"sentinel down-after-milliseconds {self.NAME} 1000\n"
                f"sentinel failover-timeout {self.NAME} 10000"
            ),
        )
        wait_until(lambda: self.sentinel.ask("SENTINEL", "REPLICAS", self.NAME), 20, "the Sentinel to know the replica")
        self.url = f"sentinel://:{password}@127.0.0.1:{self.sentinel.port}/{self.NAME}"

    def taken_over(self) -> bool:
        """Whether the replica is the master now, and the Sentinel says so."""
        with suppress(RedisError):  # who changes sides drops its connections
            told = self.sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)
            return int(told[1]) == self.replica.port and self.replica.ask("ROLE")[0] in (b"master", "master")
        return False

    def kill(self) -> None:
        """End all."""
        for server in (self.sentinel, self.replica, self.master):
            server.kill()


class TlsProxy:
    """TLS before a server that knows none.

    Args:
        folder: where the certificate lies.
        port: the server's.
    """

    def __init__(self, folder: Path, port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, key = folder / "cert.pem", folder / "key.pem"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        files = ["-keyout", str(key), "-out", str(self.certificate)]
        argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
        subprocess.run(argv, check=True, capture_output=True)
        self.port = free_port()
        #: Connections that were encrypted.
        self.served = 0
        self._behind = port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(self.certificate, key)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        threading.Thread(target=self._live, daemon=True).start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        """End it."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        others = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context))
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.served += 1
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(self._pump(reader, behind_writer), self._pump(behind_reader, writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        with suppress(OSError, ssl.SSLError):
            writer.close()
