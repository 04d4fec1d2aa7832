"""The embedded server, as a real process."""

from __future__ import annotations

import os
import re
import signal
import socketserver
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import psutil
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from gymq.errors import GymqError
from gymq.process import embedded_redis
from gymq.process.embedded_redis import EmbeddedRedis, running_url, server_binary
from tests.support.redis_server import leaked_keys, running
from tests.support.servers import free_port
from tests.support.shard import keys
from tests.support.waiting import wait_until

#: A process that starts a server in the folder it is given, says its number, and waits to be killed.
PARENT = """
import pathlib, sys, time
from gymq.process.embedded_redis import EmbeddedRedis
server = EmbeddedRedis(pathlib.Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "run") as server:
        yield server


def client(url: str) -> Redis:
    return Redis.from_url(url, decode_responses=True)


def test_data_survives_a_stop_and_a_start(tmp_path: Path):
    # Given a server with a key
    with EmbeddedRedis(tmp_path) as first, client(first.url) as redis:
        redis.xadd("stream", {"a": "1"})
    # When another server starts in its folder
    with EmbeddedRedis(tmp_path) as second, client(second.url) as redis:
        # Then it has the key, at the same address
        assert redis.xlen("stream") == 1
        assert first.url == second.url


def test_it_is_configured_to_lose_nothing_and_refuse_when_full(server: EmbeddedRedis):
    with client(server.url) as redis:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
        assert {name: redis.config_get(name)[name] for name in wanted} == wanted


def test_it_listens_at_a_socket_that_no_other_user_reaches_and_at_no_port(server: EmbeddedRedis):
    assert server.url == f"unix://{server.folder}/server.sock"
    assert server.pid
    listening = [each for each in psutil.Process(server.pid).net_connections() if each.status == psutil.CONN_LISTEN]
    assert listening == []
    assert stat.S_IMODE((server.folder / "server.sock").stat().st_mode) == 0o700


def test_where_no_socket_can_be_it_is_in_a_temporary_folder_which_goes_with_it(tmp_path: Path):
    # Given a folder whose path is too long for a socket
    folder = tmp_path / ("long" * 30)
    with EmbeddedRedis(folder) as server, client(server.url) as redis:
        redis.set("key", "value")
        place = Path(urlsplit(server.url).path).parent
        assert place.is_relative_to(tempfile.gettempdir())
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert running_url(folder) == server.url
        # When it is killed and starts again, it is found at the same place
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.alive)
        server.start()
        assert redis.get("key") == "value"
    assert not place.exists()


def test_it_forgets_the_temporary_folder_of_a_server_that_was_killed(tmp_path: Path, spawn):
    folder = tmp_path / ("long" * 30)
    parent = spawn([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    place = Path(urlsplit(running_url(folder) or "").path).parent
    parent.kill()
    wait_until(lambda: not running(pid), 5)
    assert place.exists()
    with EmbeddedRedis(folder) as server:
        assert not place.exists()
        assert str(place) not in server.url


def test_at_a_port_a_client_without_the_password_is_refused(tmp_path: Path):
    with EmbeddedRedis(tmp_path, "127.0.0.1") as server:
        address = server.url.rpartition("@")[2]
        with client(f"redis://{address}") as redis, pytest.raises(AuthenticationError):
            redis.ping()
        with client(f"redis://:wrong@{address}") as redis, pytest.raises(AuthenticationError):
            redis.ping()


class Impostor(socketserver.StreamRequestHandler):
    """A server of another user that says yes to all, and remembers what it heard."""

    heard: ClassVar[list[bytes]] = []

    def handle(self) -> None:
        while line := self.rfile.readline():
            self.heard.append(line)
            if line.startswith(b"*"):
                self.wfile.write(b"+PONG\r\n")


@pytest.fixture
def impostor() -> Iterator[int]:
    Impostor.heard.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Impostor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_another_process_that_holds_all_its_ports_hears_no_password_and_is_not_taken_for_it(
    tmp_path: Path, impostor: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(embedded_redis.random, "sample", lambda *_: [impostor, impostor])
    with pytest.raises(GymqError, match=r"ends with: .*listening on"):
        EmbeddedRedis(tmp_path, "127.0.0.1").start()
    assert Impostor.heard == []


def test_a_password_that_was_tried_is_not_used_again(tmp_path: Path, impostor: int, monkeypatch: pytest.MonkeyPatch):
    tried: list[str] = []
    write = embedded_redis._write_secret
    monkeypatch.setattr(embedded_redis, "_write_secret", lambda path, text: (tried.append(text), write(path, text)))
    free = free_port()
    monkeypatch.setattr(embedded_redis.random, "sample", lambda *_: [impostor, free])
    with EmbeddedRedis(tmp_path, "127.0.0.1"):
        first, second = (re.findall(r"requirepass (\w+)", config)[0] for config in tried[:2])
        assert first != second


def test_a_folder_that_others_may_enter_is_closed_to_them(tmp_path: Path):
    # Given a folder that others may read, with the files of a server in it
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    with EmbeddedRedis(folder) as server:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with client(server.url) as redis:
            redis.set("key", "value")
    folder.chmod(0o755)
    # When a server starts in it
    with EmbeddedRedis(folder) as server:
        # Then it is closed, and what the server writes would be closed in any folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in folder.rglob("*")}
        assert {name for name, mode in modes.items() if mode} == set()


def test_an_open_folder_of_other_files_is_refused(tmp_path: Path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open" / "other").touch()
    with pytest.raises(GymqError, match="holds other files; name a new folder, or `chmod 700` it"):
        EmbeddedRedis(tmp_path / "open").start()
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_the_folder_of_another_user_is_refused(tmp_path: Path):
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(GymqError, match="is another user's"):
        EmbeddedRedis(tmp_path / "theirs").start()


def test_told_an_address_it_listens_there_too(tmp_path: Path):
    with EmbeddedRedis(tmp_path, "127.0.0.2") as server, client(server.url) as redis:
        assert "@127.0.0.2:" in server.url
        assert redis.ping()
        assert server.pid
        listening = [each for each in psutil.Process(server.pid).net_connections() if each.status == psutil.CONN_LISTEN]
        assert sorted(each.laddr.ip for each in listening) == ["127.0.0.1", "127.0.0.2"]


@pytest.mark.parametrize(
    ("host", "says"), [("no.such.host.invalid", "give a name or address of this machine"), ("203.0.113.1", "ends with: ")]
)
def test_an_address_of_another_machine_is_refused_in_one_line(tmp_path: Path, host: str, says: str):
    with pytest.raises(GymqError, match=says), EmbeddedRedis(tmp_path, host):
        pass


def test_the_password_is_in_no_command_line_and_in_no_file_that_others_may_read(tmp_path: Path):
    with EmbeddedRedis(tmp_path / "run", "127.0.0.1") as server:
        _check_password(server)


def _check_password(server: EmbeddedRedis) -> None:
    assert server.pid
    password = server.url.split(":")[2].partition("@")[0]
    process = psutil.Process(server.pid)
    assert password not in " ".join(process.cmdline())
    assert password not in str(process.environ())
    with_it = [path for path in server.folder.rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
    assert {path.name for path in with_it} == {"server.conf", "server.url"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in with_it} == {0o600}
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700


def test_a_second_server_in_the_same_folder_is_refused(server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded_redis, "LOCK_LIMIT", 0.1)
    with pytest.raises(GymqError, match="another server already runs in") as refused:
        EmbeddedRedis(server.folder).start()
    assert "\n" not in str(refused.value)
    with client(server.url) as redis:
        assert redis.ping()


def test_other_commands_find_a_running_server_and_only_a_running_one(tmp_path: Path):
    assert running_url(tmp_path) is None
    server = EmbeddedRedis(tmp_path)
    server.start()
    assert running_url(tmp_path) == server.url
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive)
    assert running_url(tmp_path) is None


def test_it_has_the_same_address_after_a_crash(server: EmbeddedRedis):
    url = server.url
    with client(url) as redis:
        redis.set("key", "value")
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.alive)
        server.start()
        assert server.url == url
        assert redis.get("key") == "value"


def test_a_killed_parent_takes_its_server_along(tmp_path: Path, spawn):
    # Given a process with a server that has data
    parent = spawn([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    url = running_url(tmp_path)
    assert url
    with client(url) as redis:
        redis.set("key", "value")
    # When the process is killed
    parent.kill()
    # Then the server is gone in seconds, its lock too, and its data is there
    wait_until(lambda: not running(pid), 5)
    with EmbeddedRedis(tmp_path) as server, client(server.url) as redis:
        assert redis.get("key") == "value"


def test_a_successor_waits_for_the_lock_of_a_server_that_is_about_to_end(tmp_path: Path, spawn):
    parent = spawn([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    parent.stdout.readline()
    parent.kill()
    with EmbeddedRedis(tmp_path) as server:
        assert server.alive


def test_a_server_started_by_a_thread_outlives_the_thread(tmp_path: Path):
    server = EmbeddedRedis(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    # The signal comes when the thread is gone from the kernel, and the server looks for signals ten times a second.
    time.sleep(0.5)
    assert server.alive
    server.stop()


def test_ctrl_c_in_the_terminal_does_not_reach_it(server: EmbeddedRedis):
    assert server.pid
    assert os.getsid(server.pid) == server.pid


def test_a_log_of_commands_that_was_cut_short_is_loaded(tmp_path: Path):
    # Given data whose last command is incomplete, as after a loss of power
    with EmbeddedRedis(tmp_path) as server, client(server.url) as redis:
        redis.set("first", "1")
        redis.set("second", "2")
    (log,) = tmp_path.glob("appendonlydir/*.incr.aof")
    log.write_bytes(log.read_bytes()[:-3])
    # When it starts again, then all else is there
    with EmbeddedRedis(tmp_path) as server, client(server.url) as redis:
        assert redis.get("first") == "1"
        assert redis.get("second") is None


def test_data_that_cannot_be_read_is_an_error_with_the_end_of_the_log(tmp_path: Path):
    with EmbeddedRedis(tmp_path) as server, client(server.url) as redis:
        redis.set("first", "1")
    (log,) = tmp_path.glob("appendonlydir/*.incr.aof")
    log.write_bytes(b"nonsense" + log.read_bytes())
    with pytest.raises(GymqError, match=r"does not come up; .*server\.log ends with: .*Bad file format") as failed:
        EmbeddedRedis(tmp_path).start()
    assert "\n" not in str(failed.value)


def test_a_port_that_another_process_has_is_passed_over(tmp_path: Path, impostor: int, monkeypatch: pytest.MonkeyPatch):
    free = free_port()
    monkeypatch.setattr(embedded_redis.random, "sample", lambda *_: [impostor, free])
    with EmbeddedRedis(tmp_path, "127.0.0.1") as server:
        assert f":{free}/" in server.url


def test_a_folder_with_blanks_and_quotes_in_its_name_will_do(tmp_path: Path):
    folder = tmp_path / 'a "folder" of \\ münchen'
    with EmbeddedRedis(folder) as server, client(server.url) as redis:
        redis.set("key", "value")
    assert (folder / "appendonlydir").is_dir()


def test_without_a_server_program_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(GymqError, match="install one of them, or set GYMQ_REDIS_URL"):
        server_binary()


def test_a_recent_server_of_the_path_comes_first_and_an_old_one_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "redis-server"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=00000000:0'\n")
    program.chmod(0o755)
    assert server_binary() == program
    program.write_text("#!/bin/sh\necho 'Redis server v=5.0.7 sha=00000000:0'\n")
    assert server_binary() != program


def test_the_address_of_a_server_that_never_started_is_an_error(tmp_path: Path):
    with pytest.raises(GymqError, match="was not started"):
        _ = EmbeddedRedis(tmp_path).url


def test_the_search_for_leaks_finds_keys_that_stay_and_only_these(redis_url: str):
    with client(redis_url) as redis:
        redis.set("expires", "1", ex=60)
        redis.hset(keys.workers, "worker", "{}")
        redis.sadd("_kombu.binding.rollouts", "x")
        redis.xgroup_create(keys.mailbox("agent"), keys.GROUP, mkstream=True)
        redis.xgroup_create(keys.mailbox("model"), keys.GROUP, mkstream=True)
        redis.xadd(keys.mailbox("model"), {"b": "mail that nobody took"})
        redis.set(keys.rollout("run/0"), "left behind")
        redis.set("mine", "1")
    with Redis.from_url(redis_url) as raw:
        assert leaked_keys(raw, ("mine",)) == [f"{keys.mailbox('model')} (stream)", f"{keys.rollout('run/0')} (string)"]
        raw.flushall()
        assert leaked_keys(raw) == []
