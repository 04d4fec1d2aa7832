"""Who may do what on a shared server, and where secrets do not go."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from gymq import plugins
from gymq.cli.acl import acl
from gymq.ops.acl import COMMANDS, ROLES, rule
from gymq.settings import Settings
from gymq.store import lua
from gymq.store.runs import RunConfig
from tests.support.waiting import wait_until

GYMQ = str(Path(sys.executable).parent / "gymq")


@pytest.fixture
def users(redis_url):
    """A function that returns the address of a role, whose user is made by the rule that `gymq acl` prints."""
    made = set()
    with Redis.from_url(redis_url) as admin:
        admin.acl_log_reset()  # other tests' refusals

    def make(role: str) -> str:
        if f"gymq-{role}" not in made:
            with Redis.from_url(redis_url) as admin:
                admin.execute_command(*rule(role).replace("PASSWORD", "secret").split())
            made.add(f"gymq-{role}")
        return re.sub(r"://.*@", f"://gymq-{role}:secret@", redis_url)

    yield make
    with Redis.from_url(redis_url) as admin:
        # What redis-py says of itself (CLIENT SETINFO) older servers do not know, and it does not mind; nor does gymq mind that
        # a role may not ask whether the server evicts keys (INFO).
        refused = {entry["username"]: entry["object"] for entry in admin.acl_log() if entry["object"] not in ("client", "info")}
        admin.execute_command("ACL", "DELUSER", *made)
        admin.acl_log_reset()
    assert refused == {}, "a right is missing"


@pytest.mark.slow
def test_each_role_does_its_work_with_the_rights_that_are_printed_for_it(farm, users, redis_url, tmp_path):
    # Given a worker of each role, a producer, a sink and an operator, each as a user of its own
    liveness = {"GYMQ_LIVENESS": "1"}

    def start(role: str, **options: str):
        farm.settings = Settings(redis_url=users(role), liveness=1.0)
        return farm.start(role, **options)

    def gymq(role: str, *words: str) -> str:
        env = {**os.environ, **liveness, "GYMQ_REDIS_URL": users(role)}
        done = subprocess.run([GYMQ, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for role in ("agent", "model", "resource"):
        start(role, model="scripted", environments="hostile,weather")
    start("executor")
    victim = start("resource", environments="weather")
    farm.wait_for(4)
    # When everything that gymq does is done, isolated calls, a death and a cancellation among it
    farm.settings = Settings(redis_url=users("producer"), liveness=1.0)
    rows = [{"id": "pid", "prompt": "go", "calls": ["pid"], "environment": "hostile"}]
    rows += [{"id": f"w{i}", "prompt": f"What is the weather in city{i}?"} for i in range(30)]
    farm.produce(RunConfig("rights", "weather", "tool", "scripted"), rows)
    victim.kill()
    victim.wait()
    farm.settings = Settings(redis_url=users("consumer"), liveness=1.0)
    rollouts = farm.finish("rights", tmp_path / "out.jsonl", 60)
    assert [r["status"] for r in rollouts] == ["completed"] * 31
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    run = "produce weather --data rows.jsonl --model scripted --concurrency 1 --consumer x --run third"
    gymq("producer", *run.split())
    for words in ("status", "control stats", "control pause", "control resume", "cancel third", "rm third --yes"):
        gymq("operator", *words.split())
    # Then none lacked a right, which the fixture looks for


#: What no role may do, beside what belongs to others.
FORBIDDEN = [
    *("FLUSHALL", "FLUSHDB", "RANDOMKEY", "KEYS *", "SHUTDOWN", "CONFIG GET *", "ACL LIST", "CLIENT LIST"),
    *("FUNCTION FLUSH", "SCRIPT FLUSH", "SCRIPT KILL", "EVAL return 0", "MONITOR", "DBSIZE", "SWAPDB 0 1", "SAVE"),
    *("GET other", "SET other 1", "GET gymq-other", "SUBSCRIBE news", "PSUBSCRIBE *", "PUBLISH news 1", "REPLICAOF NO ONE"),
    *("RESTORE gymq:{0}:x 0 x", "MIGRATE h 1 gymq:{0}:x 0 1", "RENAME gymq:{0}:runs other", "COPY gymq:{0}:runs other"),
]

#: Keys that a role has nothing to do with.
OTHERS = {
    "model": ("out:r", "run:r", "runs", "open", "due", "chunks:r"),
    "resource": ("out:r", "run:r", "runs", "open", "due", "rate:x", "weights:m"),
    "executor": ("out:r", "run:r", "runs", "t:r.0.0", "k:r.0.0", "rows:r", "m:model:m", "due", "private", "weights:m"),
    "producer": ("m:agent", "r:r.0.0", "t:r.0.0", "k:r.0.0", "workers", "alive:w", "isolated", "dead", "rate:x"),
    "consumer": ("m:agent", "r:r.0.0", "t:r.0.0", "k:r.0.0", "workers", "alive:w", "isolated", "dead", "rate:x"),
    "agent": ("rate:x", "failed:m", "turn:m"),
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_nothing_else(redis_url, role):
    with Redis.from_url(redis_url) as admin:
        admin.execute_command(*rule(role).replace(f"gymq-{role}", "gymq-probe").replace("PASSWORD", "secret").split())
        commands = [words.split() for words in FORBIDDEN] + [
            ["TYPE", "x"],
            *([["SCAN", "0"]] * (role not in ("operator", "all"))),
        ]
        commands += [["EXISTS", f"gymq:{{0}}:{key}"] for key in OTHERS.get(role, ())]
        if role in ("consumer", "producer"):
            commands += [["INFO"], ["PUBLISH", "/0.celery.pidbox", "{}"], ["LPUSH", "gymq.isolated", "x"]]
        if role == "consumer":
            commands += [["LPUSH", "gymq.rollouts", "x"], ["SMEMBERS", "_kombu.binding.celery.pidbox"]]
        with Redis.from_url(re.sub(r"://.*@", "://gymq-probe:secret@", redis_url)) as user:
            assert user.ping()
            for command in commands:
                with pytest.raises(ResponseError) as refusal:
                    user.execute_command(*command)
                # An older server does not know FUNCTION.
                assert isinstance(refusal.value, NoPermissionError) or command[0] == "FUNCTION"
        admin.execute_command("ACL", "DELUSER", "gymq-probe")
        admin.acl_log_reset()


def test_a_rule_is_printed_for_the_database_of_the_broker():
    printed = CliRunner().invoke(acl, ["agent", "--redis", "redis://host/3"]).output
    assert printed.startswith("ACL SETUSER gymq-agent reset resetchannels on >PASSWORD ~gymq:{*}: ")
    assert "&/3.celery.pidbox &/3.celeryev/* -@all" in printed
    assert "&*" not in printed


def test_every_command_of_a_script_stands_in_the_rules():
    scripts = (Path(lua.__file__).parent).glob("*.lua")
    used = {word.lower() for script in scripts for word in re.findall(r"\bp?call\('([A-Z]+)'", script.read_text())}
    assert len(used) > 30
    assert used <= {command.partition("|")[0] for command in COMMANDS}


class Echo(http.server.BaseHTTPRequestHandler):
    """An endpoint that hates us: it repeats what it was sent, the key too, in each error."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        said = json.dumps({"error": {"message": f"bad key: {self.headers['Authorization']} for {self.path}"}}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.slow
def test_planted_secrets_are_nowhere_to_be_found(spawn, tmp_path, redis_url):
    # Given keys and tokens in all places where people put them, and an endpoint that repeats them in its errors
    planted = {name: f"{name}{secrets.token_hex(8)}" for name in ("KEY", "USERPW", "TOKEN")}
    echo = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{echo.server_port}/v1"
    password = re.search(r":(\w+)@", redis_url)[1]
    env = {"OPENAI_API_KEY": planted["KEY"], "OPENAI_BASE_URL": base, "GYMQ_LIVENESS": "1", "GYMQ_REDIS_URL": redis_url}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": f"w{i}", "prompt": f"What is the weather in city{i}?"}) + "\n" for i in range(20))
    )
    # When a run fails on it, while somebody looks at everything that can be looked at
    argv = [GYMQ, "run", "weather", "--data", "rows.jsonl", "--model", "openai:m", "--out", "out.jsonl", "--redis", "env"]
    refused = {**os.environ, **env, "OPENAI_BASE_URL": f"http://user:{planted['USERPW']}@127.0.0.1/v1?token={planted['TOKEN']}"}
    done = subprocess.run(argv, env=refused, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "base_url holds a user, a password or a query" in done.stderr) == (2, True)
    seen: list[str] = [done.stdout + done.stderr]
    with (tmp_path / "said.log").open("wb") as said:
        process = spawn(argv, env, cwd=tmp_path, stdout=said, stderr=said)
        wait_until(lambda: list((tmp_path / "out.jsonl.gymq" / "logs").glob("model*")), 30, "the workers")
        wait_until(lambda: _look(process, seen), 90, "the run to end")
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert 3 <= len(out) <= 20  # it stops when the first have failed alike
    assert all(record["status"] == "failed" and "401" in record["error"]["message"] for record in out)
    control = [[GYMQ, "status"], [GYMQ, "control", "stats"]]
    seen += [subprocess.run(c, env={**os.environ, **env}, capture_output=True, text=True, check=False).stdout for c in control]
    # Then no file, no command line and no key of Redis has one
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    texts = {str(path): path.read_text(errors="replace") for path in files} | dict(enumerate(seen))
    with Redis.from_url(redis_url) as client:
        texts |= {key.decode(): str(client.dump(key)) for key in client.scan_iter()}
    for where, text in texts.items():
        for name, secret in {**planted, "redis password": password}.items():
            assert secret not in text, f"{name} stands in {where}"
    echo.shutdown()


#: An environment whose tools, of a resource worker and of an executor, tell the names of their variables.
TELLER = """\
import os
from gymq import Environment, Function, Message, ToolCall, tool

class Teller(Environment):
    name = "teller"
    secrets = ("TELLER_TOKEN",)

    @tool
    def here(self) -> str:
        "Tell."
        return " ".join(os.environ)

    @tool(isolated=True)
    def apart(self) -> str:
        "Tell."
        return " ".join(os.environ)

    def policy(self, messages):
        said = [message for message in messages if message.role == "tool"]
        if len(said) == 2:
            return Message(role="assistant", content="done")
        return Message(role="assistant", tool_calls=[ToolCall("c", Function(["here", "apart"][len(said)], "{}"))])
"""


@pytest.mark.slow
def test_a_secret_reaches_the_roles_that_need_it_and_no_others(spawn, tmp_path, redis_url):
    # Given a key of the model's, a token that the environment declares and one that it does not, beside other variables
    (tmp_path / "teller.py").write_text(TELLER)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "tell"}\n')
    secrets = {"OPENAI_API_KEY": "sk-x", "TELLER_TOKEN": "t", "OTHER_TOKEN": "o", "GYMQ_REDIS_URL": redis_url}
    others = {"CUDA_VISIBLE_DEVICES": "", "HTTPS_PROXY": "http://u:p@h:1", "LC_TIME": "C", "SOME_PATH": "/x"}
    argv = [GYMQ, "run", "teller.py:Teller", "--data", "rows.jsonl", "--model", "scripted", "--out", "out.jsonl"]
    # When a run plays it
    process = spawn([*argv, "--redis", "env"], {**secrets, **others}, cwd=tmp_path)
    found: dict[str, set[str]] = {}

    def ended() -> bool:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                role = next((word for word in ("agent", "model", "resource", "executor", "sink") if word in words[4:7]), None)
                if role and (names := set(child.environ())):  # none, once it has ended
                    found[role] = names
        return process.poll() is not None

    wait_until(ended, 60, "the run to end")
    assert process.returncode == 0
    # Then each process has what it needs, and what is no secret
    assert {role: names & secrets.keys() for role, names in found.items()} == {
        **{role: {"GYMQ_REDIS_URL"} for role in ("agent", "model", "sink")},
        **{role: {"GYMQ_REDIS_URL", "TELLER_TOKEN"} for role in ("resource", "executor")},
    }
    assert all(others.keys() <= names for names in found.values())
    # And an isolated tool has no address of Redis
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    here, apart = [set(message["content"].split()) for message in record["messages"] if message["role"] == "tool"]
    assert here & secrets.keys() == {"GYMQ_REDIS_URL", "TELLER_TOKEN"}
    assert apart & secrets.keys() == {"TELLER_TOKEN"}


@pytest.mark.slow
def test_a_worker_started_by_hand_forgets_what_its_role_does_not_need(farm, monkeypatch, tmp_path):
    # Given workers started where more secrets are set than they need
    (tmp_path / "teller.py").write_text(TELLER)
    teller = f"{tmp_path}/teller.py:Teller"
    for name in ("OPENAI_API_KEY", "OTHER_TOKEN", "TELLER_TOKEN"):
        monkeypatch.setenv(name, "sk-something")
    for role in ("resource", "executor"):
        farm.start(role, environments=teller)
    farm.start("agent")
    farm.start("model", model="scripted", environments=teller)
    farm.wait_for(3)
    # When a tool of each looks
    plugins.add_environment(teller)
    farm.produce(RunConfig("forget", "teller", "tool", "scripted"), [{"prompt": "tell"}])
    (record,) = farm.finish("forget", tmp_path / "out.jsonl", 60)
    # Then only the one that its environment declares is there
    here, apart = [set(message["content"].split()) for message in record["messages"] if message["role"] == "tool"]
    secrets = {"OPENAI_API_KEY", "OTHER_TOKEN", "TELLER_TOKEN", "GYMQ_REDIS_URL"}
    assert here & secrets == {"GYMQ_REDIS_URL", "TELLER_TOKEN"}
    assert apart & secrets == {"TELLER_TOKEN"}


def _look(process, seen: list[str]) -> bool:
    """Note the command lines of all processes of the run; returns whether it has ended."""
    for one in [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]:
        with contextlib.suppress(psutil.Error):
            seen.append(" ".join(psutil.Process(one).cmdline()))
    return process.poll() is not None
