"""Programs that a model wrote, from inside: what they try, and what they reach."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import psutil
import pytest

import gymq
from gymq.errors import GymqError, UsageError
from gymq.process import sandbox
from gymq.process.program_output import OUTPUT
from gymq.process.sandbox import DISK, run_program
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

#: A system's Python, which other users may run; ours may be in a home.
PYTHON = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path)), None)

#: In a user namespace that allows no further ones.
WITHOUT = 'echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_pid_namespaces; exec "$@"'

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


def marked(marker: str) -> list[int]:
    """The processes that have a marker among their arguments."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]


def walled() -> bool:
    """Whether this machine has namespaces for us."""
    try:
        return run_program(["true"]).walls == "namespaces"
    except GymqError:
        return False


needs_namespaces = pytest.mark.skipif(not walled(), reason="this machine has no namespaces for us")
needs_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")


@pytest.fixture(scope="module")
def world():
    """A folder that everybody may read, with a copy of gymq, for processes that are not we."""
    folder = Path(tempfile.mkdtemp(prefix="gymq-test-"))
    try:
        for module in (gymq, msgspec):
            shutil.copytree(Path(module.__file__).parent, folder / Path(module.__file__).parent.name)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield folder
    finally:
        shutil.rmtree(folder)


def as_another(world: Path, wrapper: list[str], argv: list[str], **given) -> dict:
    """Run a program in a sandbox that another process makes, under another identity; what it says of it."""
    if PYTHON is None:
        pytest.skip("no Python of the system")
    there = subprocess.run(
        [PYTHON, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    if there.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip("the system's Python is of another version than ours: it cannot load our msgspec")
    code = "import sys, msgspec; from gymq import run_program; c = msgspec.json.decode(sys.stdin.read());"
    code += "sys.stdout.write(msgspec.json.encode(run_program(c[0], **c[1])).decode())"
    env = {"PYTHONPATH": str(world), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **given.pop("env", {})}
    text = msgspec.json.encode([argv, given]).decode()
    done = subprocess.run(
        [*wrapper, PYTHON, "-c", code], input=text, capture_output=True, text=True, cwd=world, env=env, timeout=60, check=False
    )
    return msgspec.json.decode(done.stdout) | {"said": done.stderr} if done.returncode == 0 else {"said": done.stderr}


@pytest.fixture
def temporary(monkeypatch):
    """A folder of its own for what would lie in /tmp, which others may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="gymq-test-"))
    folder.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


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


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b"])
def test_a_file_cannot_be_put_outside_the_folder(name):
    with pytest.raises(UsageError):
        run_program(["true"], files={name: ""})


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
    if walls == "uid" and (os.geteuid() != 0 or PYTHON is None):
        pytest.skip("needs root and a Python of the system")
    monkeypatch.setattr(sandbox, "_proven", [walls])
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
    code = f"from gymq.process import sandbox; sandbox._proven.append({walls!r}); sandbox.run_program({argv!r}, seconds=60)"
    caller = spawn([sys.executable, "-c", code], {"TMPDIR": str(temporary)})
    wait_until(lambda: len(marked(marker)) >= 4, 20, "the program's processes")
    # When it is killed
    caller.kill()
    caller.wait()
    # Then so are they
    wait_until(lambda: not marked(marker), 10, "the end of the program")
    wait_until(lambda: not list(temporary.iterdir()), 10, "the end of its folder")


def test_what_a_program_prints_is_cut(monkeypatch):
    ran = run_program(["python", "-c", "import os\nfor _ in range(1000): os.write(1, b'x' * (1 << 20))"], seconds=30)
    assert (ran.exit, ran.reason) == (0, "")
    kept, note = ran.stdout.split("\n")
    assert len(kept) == OUTPUT
    assert note == f"[{(1000 << 20) - OUTPUT} bytes more were cut]"


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
