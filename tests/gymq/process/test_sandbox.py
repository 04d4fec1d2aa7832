"""Programs that a model wrote, from inside: what they try, and what they reach."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import sys
from pathlib import Path

import psutil
import pytest

import gymq
from gymq.errors import GymqError, UsageError
from gymq.process import sandbox
from gymq.process.program_output import OUTPUT
from gymq.process.sandbox import DISK, run_program
from tests.support.sandboxes import NOBODY, PYTHON, WITHOUT, as_another, needs_namespaces, needs_root
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")

HOSTILE = Path(__file__).with_name("hostile_program.py")

#: Starts processes that leave the session, ignore every signal, and hold the pipes; argv: a marker.
STUBBORN = """
import os, signal, sys, time
for _ in range(3):
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        break
else:
    if sys.argv[2] == "end":
        os._exit(0)
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True:
    time.sleep(100)
"""


#: Numbers of calls on x86_64.
ADD_KEY, REQUEST_KEY, KEYCTL = 248, 249, 250


def choose(walls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the sandbox use these walls, or skip the test where this machine cannot make them."""
    if walls == "uid" and (os.geteuid() != 0 or PYTHON is None):
        pytest.skip("needs root and a Python of the system")
    monkeypatch.setattr(sandbox, "_chosen", [walls])
    monkeypatch.setenv("GYMQ_SANDBOX", walls)


def marked(marker: str) -> list[int]:
    """The processes that have a marker among their arguments."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]


@pytest.fixture
def hostile(redis_url, tmp_path, monkeypatch):
    """The arguments of the hostile program, and what it must not reach: variables, a server, files, this process."""
    monkeypatch.setenv("OPENAI_API_KEY", "planted-secret")
    monkeypatch.setenv("GYMQ_REDIS_URL", redis_url)
    private = tmp_path / "secret"
    private.write_text("planted-secret")
    private.chmod(0o600)
    port = redis_url.rpartition(":")[2].partition("/")[0]
    project = Path(gymq.__file__).parent.parent / "pyproject.toml"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        port = port if port.isdigit() else str(server.getsockname()[1])
        abstract.bind("\0gymq-test-" + port)
        abstract.listen()
        # Whoever made the walls holds the secret too, and is closest.
        yield ["planted-secret", str(os.getpid()), port, str(private), str(project)]


def test_a_program_gets_its_files_and_stdin_and_its_output_comes_back():
    code = "import sys; print(open('data/in.txt').read(), sys.stdin.read()); print('oops', file=sys.stderr); sys.exit(3)"
    ran = run_program(["python", "main.py"], files={"main.py": code, "data/in.txt": b"file"}, stdin="typed")
    assert (ran.exit, ran.stdout, ran.stderr, ran.reason, ran.ok) == (3, "file typed\n", "oops\n", "", False)


def test_a_program_may_use_the_packages_of_this_python():
    ran = run_program(["python", "-c", "import msgspec; print(msgspec.json.encode([1]).decode())"])
    assert (ran.ok, ran.stdout) == (True, "[1]\n"), ran


def test_a_program_that_does_not_exist_ends_with_127():
    ran = run_program(["no-such-program"])
    assert (ran.exit, "No such file" in ran.stderr) == (127, True)


def test_what_a_program_may_read_besides_can_lie_beside_its_folder_and_stays_as_it_is(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "data").write_text("given")
    code = "import sys; print(open(sys.argv[1]).read()); open(sys.argv[1], 'w')"
    ran = run_program(["python", "-c", code, str(tmp_path / "data")], readable=[tmp_path])
    if ran.walls == "namespaces":
        assert (ran.stdout, ran.stderr.splitlines()[-1].split(":")[0]) == ("given\n", "OSError"), ran
    assert (tmp_path / "data").read_text() == "given"


#: Files and arguments that no system can have, each with a part of what the program's error output says.
IMPOSSIBLE = {
    "an absolute name": (["true"], {"/etc/passwd": ""}, "no path within"),
    "a name that leads out": (["true"], {"a/../../x": ""}, "no path within"),
    "no name": (["true"], {"": ""}, "no path within"),
    "NUL in a name": (["true"], {"a\0b": ""}, "null byte"),
    "a long name": (["true"], {"n" * 300: ""}, "File name too long"),
    "a name that is a file and a folder": (["true"], {"a": "", "a/b": ""}, "cannot write 'a/b'"),
    "a lone surrogate in a name": (["true"], {"a\ud800": ""}, "surrogates not allowed"),
    "NUL in an argument": (["echo", "a\0b"], {}, "null byte"),
    "a lone surrogate in an argument": (["echo", "\ud800"], {}, "surrogates not allowed"),
    "an argument of a mebibyte": (["echo", "x" * (1 << 20)], {}, "Argument list too long"),
    "no name of a program": ([""], {}, "cannot run ''"),
    "a file beyond the folder's bound": (["true"], {"big": bytes((1 << 20) + 1)}, "cannot write 'big'"),
}


@needs_namespaces
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_no_program_can_be_ends_with_127_and_changes_no_walls(case):
    argv, files, says = IMPOSSIBLE[case]
    ran = run_program(argv, files=files, disk=1 << 20)
    assert (ran.exit, ran.walls, ran.reason) == (127, "namespaces", ""), ran
    assert says in ran.stderr


@needs_namespaces
def test_a_first_program_that_cannot_be_does_not_decide_on_the_walls(monkeypatch):
    # Given a process that has run no program yet, and accepts any walls
    monkeypatch.setattr(sandbox, "_chosen", [])
    monkeypatch.setenv("GYMQ_SANDBOX", "weak")
    # When its first one fills the folder before it has begun
    first = run_program(["true"], files={f"f{number}": "" for number in range(16_400)})
    # Then that is its own end, and the next one has the walls that this machine can make
    assert (first.exit, first.walls) == (127, "namespaces")
    assert "No space left on device" in first.stderr
    assert run_program(["true"]).walls == "namespaces"


@needs_namespaces
def test_walls_that_fail_later_are_not_replaced_by_weaker_ones(monkeypatch, tmp_path):
    # Given a machine that accepts any walls, and has made the strongest before
    monkeypatch.setenv("GYMQ_SANDBOX", "weak")
    run_program(["true"])
    # When they cannot be made
    monkeypatch.setattr(sandbox, "program_filter", lambda: bytes(8))
    # Then the program is refused
    with pytest.raises(GymqError, match=r"walls \(namespaces\) could not be made this time: .*Invalid argument"):
        run_program(["touch", str(tmp_path / "outside")])
    assert not (tmp_path / "outside").exists()


@needs_namespaces
def test_what_a_machine_lacks_for_a_moment_is_no_choice_of_walls(monkeypatch):
    # Given a first try that does not come to an end
    monkeypatch.setattr(sandbox, "_chosen", [])
    monkeypatch.setenv("GYMQ_SANDBOX", "weak")
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "SECONDS", 1e-9)
        with pytest.raises(GymqError, match="could not be tried"):
            run_program(["true"])
    # Then the next try has them
    assert run_program(["true"]).walls == "namespaces"


def test_a_caller_demands_walls_of_a_strength(monkeypatch):
    monkeypatch.setattr(sandbox, "_chosen", ["uid"])
    with pytest.raises(GymqError, match="namespaces or stronger \\(it has uid\\)"):
        run_program(["true"], minimum="namespaces")
    monkeypatch.setenv("GYMQ_SANDBOX", "namespaces")
    with pytest.raises(GymqError, match="namespaces or stronger"):
        run_program(["true"])
    monkeypatch.setenv("GYMQ_SANDBOX", "none")
    with pytest.raises(UsageError, match="GYMQ_SANDBOX is 'none'"):
        run_program(["true"])


#: Sends every signal to pid 1 and its own group, and tries to give pid 1 limits; then ends with 5.
SIGNALS = """
import os, resource, signal
for number in sorted(signal.valid_signals()):
    for target in (1, -1):
        if target == 1 or number in (signal.SIGINT, signal.SIGCHLD, signal.SIGWINCH):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                os.kill(target, number)
            except OSError:
                pass
try:
    resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
    print("limited")
except OSError:
    pass
raise SystemExit(5)
"""


@needs_namespaces
def test_no_signal_and_no_limit_reaches_pid_1():
    ran = run_program(["python", "-c", SIGNALS])
    assert (ran.exit, ran.stdout, ran.stderr, ran.reason) == (5, "", "", "")


@needs_root
def test_no_signal_and_no_limit_of_an_unprivileged_user_reaches_pid_1(world):
    ran = as_another(world, NOBODY, ["python3", "-c", SIGNALS], env={"GYMQ_SANDBOX": "weak"})
    if ran.get("walls") != "namespaces":
        pytest.skip(f"users may make no namespaces here: {ran['said']}")
    assert (ran["exit"], ran["stdout"], ran["stderr"], ran["reason"]) == (5, "", "", "")


@pytest.fixture
def key():
    """A key in a session keyring that this process has joined, and all that it starts: its number."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(KEYCTL, 1, None)
    number = libc.syscall(ADD_KEY, b"user", b"gymq-test", b"planted-secret", 14, -3)
    if number < 0:
        pytest.skip("no keyrings here")
    return number


#: Looks for a key by its name and by its number; argv: the number, and those of the calls.
KEYS = """
import ctypes, sys
libc, number, found = ctypes.CDLL(None), int(sys.argv[1]), ctypes.create_string_buffer(64)
request, control = int(sys.argv[2]), int(sys.argv[3])
print(libc.syscall(request, b"user", b"gymq-test", None, 0), libc.syscall(control, 10, -3, b"user", b"gymq-test", 0))
print(libc.syscall(control, 11, number, found, 64), found.value)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the calls' numbers are those of x86_64")
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("walls", ["namespaces", "uid", "weak"])
def test_a_program_has_no_key_of_the_process_that_runs_it(walls, filtered, key, monkeypatch):
    choose(walls, monkeypatch)
    if not filtered:  # as on machines for which there is none
        monkeypatch.setattr(sandbox, "program_filter", bytes)
    ran = run_program([PYTHON or "python", "-c", KEYS, str(key), str(REQUEST_KEY), str(KEYCTL)])
    if walls == "weak" and not filtered:
        assert ran.stdout.startswith("-1 -1\n")  # a key's owner may name it by its number
    else:
        assert ran.stdout == "-1 -1\n-1 b''\n"


#: Leaves a file, a folder, a segment, a semaphore and a queue; argv: their name.
LITTER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.shmget(0, 4096, 0o1600), libc.semget(0, 1, 0o1600), libc.msgget(0, 0o1600)
for place in ("/tmp", "/var/tmp", "/dev/shm"):
    os.makedirs(f"{place}/{sys.argv[1]}/deep/er")
    open(f"{place}/{sys.argv[1]}.txt", "w").close()
print(os.getuid())
"""


@needs_root
@pytest.mark.parametrize("filtered", [True, False])
def test_nothing_that_a_user_of_its_own_left_outlives_its_program(filtered, monkeypatch):
    if PYTHON is None:
        pytest.skip("no Python of the system")
    monkeypatch.setattr(sandbox, "_chosen", ["uid"])
    if not filtered:
        monkeypatch.setattr(sandbox, "program_filter", bytes)
    name = f"gymq-test-{os.urandom(4).hex()}"
    ran = run_program([PYTHON, "-c", LITTER, name])
    assert ran.ok, ran
    assert [place for place in ("/tmp", "/var/tmp", "/dev/shm") if list(Path(place).glob(f"{name}*"))] == []
    for kind in ("shm", "sem", "msg"):
        assert ran.stdout.strip() not in Path(f"/proc/sysvipc/{kind}").read_text().split()


@needs_namespaces
def test_what_a_program_sees_of_proc_is_read_only():
    ran = run_program(["python", "-c", "open('/proc/self/comm', 'w')"])
    assert "Read-only file system" in ran.stderr


@needs_namespaces
def test_python_is_found_however_it_was_named(monkeypatch):
    # Given a way through a folder that the program does not see
    here = os.path.dirname(__file__)
    monkeypatch.setattr(sys, "executable", f"{here}/{os.path.relpath(sys.executable, here)}")
    ran = run_program(["python", "-c", "import msgspec, sys; print(sys.prefix)"])
    assert (ran.exit, ran.stdout.strip()) == (0, os.path.realpath(sys.prefix)), ran


@needs_namespaces
def test_a_hostile_program_reaches_nothing(hostile):
    ran = run_program(
        ["python", "h.py", *hostile], files={"h.py": HOSTILE.read_text()}, seconds=60, disk=32 << 20, processes=20
    )
    assert (ran.exit, ran.stderr, ran.walls) == (0, "", "namespaces")
    assert json.loads(ran.stdout) == []


@needs_root
def test_a_hostile_program_of_an_unprivileged_user_reaches_nothing(hostile, world):
    given = {"files": {"h.py": HOSTILE.read_text()}, "seconds": 60, "disk": 32 << 20, "processes": 20}
    env = {"OPENAI_API_KEY": "planted-secret"}
    ran = as_another(world, NOBODY, ["python3", "h.py", *hostile], env=env, **given)
    if "walls" not in ran:
        pytest.skip(f"users may make no namespaces here: {ran['said']}")
    assert (ran["walls"], json.loads(ran["stdout"])) == ("namespaces", [])


@needs_root
def test_without_namespaces_root_gives_a_program_a_user_of_its_own(hostile, world, temporary):
    # Given a container's root, who may not mount
    given = {"files": {"h.py": HOSTILE.read_text()}, "seconds": 60, "disk": 32 << 20, "processes": 20}
    env = {"OPENAI_API_KEY": "planted-secret", "TMPDIR": str(temporary)}
    ran = as_another(world, ["setpriv", "--bounding-set=-sys_admin"], ["python3", "h.py", *hostile], env=env, **given)
    # Then it holds but for what it says: the network, files that anybody may read, the sum of its files
    assert ran["walls"] == "uid"
    assert "they can reach the network" in ran["said"]
    managed = [what for what in json.loads(ran["stdout"]) if not what.startswith("list ")]
    open_to_all = {f"read {hostile[-1]}", "user namespace", "disk"}
    assert (
        {"redis", "abstract socket"}
        <= set(managed)
        <= {"redis", "redis by ipv6", "abstract socket", "resolve", "dial", *open_to_all}
    )
    # And its folder is gone
    assert list(temporary.iterdir()) == []


@needs_root
def test_without_any_walls_a_program_is_refused_unless_that_is_accepted(world):
    outside = [*NOBODY, "unshare", "-U", "-r", "sh", "-c", WITHOUT, "sh"]
    said = as_another(world, outside, ["id"])["said"].strip().splitlines()[-1]
    assert "no sandbox for programs on this machine" in said
    assert "GYMQ_SANDBOX=weak" in said
    ran = as_another(world, outside, ["id", "-u"], env={"GYMQ_SANDBOX": "weak"})
    assert (ran["walls"], ran["stdout"]) == ("weak", "0\n")
    assert "limits only" in ran["said"]


@pytest.mark.parametrize("end", ["end", "stay"])
@pytest.mark.parametrize("walls", ["namespaces", "uid", "weak"])
def test_nothing_outlives_its_limit(walls, end, monkeypatch, temporary):
    # Given each kind of walls
    choose(walls, monkeypatch)
    # When a program leaves processes behind that ignore signals
    marker = f"gymq-test-{os.urandom(4).hex()}"
    ran = run_program([PYTHON or "python", "-c", STUBBORN, marker, end], seconds=2)
    # Then it ends on its own or at its limit, and nothing of it is left
    assert (ran.walls, ran.reason) == (walls, "" if end == "end" else "timeout"), ran
    assert ran.seconds < 10
    assert marked(marker) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.chaos
@pytest.mark.parametrize("walls", ["namespaces", "uid", "weak"])
def test_a_program_dies_with_who_asked_for_it(walls, spawn, temporary):
    if walls == "uid" and os.geteuid() != 0:
        pytest.skip("needs root")
    # Given a process that runs a program
    marker = f"gymq-test-{os.urandom(4).hex()}"
    argv = [PYTHON or "python", "-c", STUBBORN, marker, "stay"]
    code = f"from gymq.process import sandbox; sandbox._chosen.append({walls!r}); sandbox.run_program({argv!r}, seconds=60)"
    caller = spawn([sys.executable, "-c", code], {"TMPDIR": str(temporary), "GYMQ_SANDBOX": walls})
    wait_until(lambda: len(marked(marker)) >= 4, 20, "the program's processes")
    # When it is killed
    caller.kill()
    caller.wait()
    # Then so are they
    wait_until(lambda: not marked(marker), 10, "the end of the program")
    wait_until(lambda: not list(temporary.iterdir()), 10, "the end of its folder")


def test_what_a_program_prints_is_cut(monkeypatch):
    ran = run_program(["python", "-c", "import os\nfor _ in range(200): os.write(1, b'x' * (1 << 20))"], seconds=120)
    assert (ran.exit, ran.reason) == (0, "")
    kept, note = ran.stdout.split("\n")
    assert len(kept) == OUTPUT
    assert note == f"[{(200 << 20) - OUTPUT} bytes more were cut]"


def test_a_program_that_burns_cpu_in_threads_ends_at_its_limit():
    ran = run_program(["python", "-c", "while True: pass"], seconds=1)
    assert ran.reason == "timeout"


def test_a_file_of_a_program_is_bounded():
    ran = run_program(["python", "-c", "open('f', 'wb').write(bytes(1 << 27))"], disk=DISK)
    assert ran.exit == -25 or "File too large" in ran.stderr or "No space" in ran.stderr, ran


def test_many_runs_leave_no_descriptor_and_no_process():
    run_program(["true"])
    me = psutil.Process()
    before, children = me.num_fds(), len(me.children(recursive=True))
    for _ in range(20):
        assert run_program(["true"]).ok
    assert me.num_fds() == before
    assert len(me.children(recursive=True)) == children
