"""docker-compose.yml without Docker: each service's command as a local process with its environment, and rollouts pass."""

from __future__ import annotations

import json
import re
import shlex
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from redis import Redis
from redis.exceptions import RedisError

from gymq.process.embedded_redis import server_binary
from gymq.settings import Settings
from tests.support.rollouts import registered, status, wait_for_state, weather
from tests.support.servers import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[1]

#: Rows that are enqueued; with two samples each.
ROWS = 20

#: What the compose file may say: `${NAME}`, `${NAME:-default}`, `${NAME:?reason}`, `$$` for a dollar sign.
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}|\$\$")


def interpolated(value: Any, variables: dict[str, str]) -> Any:
    """What Docker Compose makes of the variables in a value."""
    if isinstance(value, dict):
        return {key: interpolated(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if name is None:
            return "$"
        if variables.get(name):
            return variables[name]
        assert kind == "-", f"{name} is not set: {text}"
        return text

    return _VARIABLE.sub(one, value)


class Compose:
    """The services as local processes: host names become loopback, mounted folders become folders of the test.

    Args:
        spawn: the fixture.
        folder: where the server's data, `data`, `out` and the logs are.
        variables: what the user has set.
    """

    def __init__(self, spawn: Any, folder: Path, **variables: str) -> None:
        self.spawn = spawn
        self.folder = folder
        self.port = free_port()
        self.flower_port = free_port()
        self.password = "hunter2"
        defaults = {
            "GYMQ_PASSWORD": self.password,
            "GYMQ_REDIS_PORT": str(self.port),
            "GYMQ_FLOWER_PORT": str(self.flower_port),
        }
        self.services = interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), {**defaults, **variables})[
            "services"
        ]
        self.settings = Settings(redis_url=f"redis://:{self.password}@127.0.0.1:{self.port}/0")
        for name in ("data", "out", "redis"):
            (folder / name).mkdir()

    def start(self, name: str) -> Any:
        """Start one service's command with its environment."""
        service = self.services[name]
        command = service["command"]
        argv = shlex.split(command) if isinstance(command, str) else command
        if argv[0] == "gymq":
            argv[:1] = [sys.executable, "-m", "gymq.cli"]
        else:
            server = f"{server_binary()} - --port {self.port} --bind 127.0.0.1"
            argv = [argument.replace("valkey-server -", server) for argument in argv]
        for mount in service.get("volumes", ()):
            source, target = mount.split(":")[:2]
            argv = [argument.replace(target, str(self.folder / source.removeprefix("./")), 1) for argument in argv]
        env = {key: value.replace("@redis:6379", f"@127.0.0.1:{self.port}") for key, value in service["environment"].items()}
        # Containers have a port 9400 each, processes of one machine do not.
        env |= {"GYMQ_METRICS_PORT": "0", "GYMQ_METRICS_HOST": "127.0.0.1"} if "GYMQ_METRICS_PORT" in env else {}
        log = (self.folder / f"{name}.log").open("wb")
        return self.spawn(argv, env, cwd=self.folder, stdout=log, stderr=-2)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture
def compose(spawn, tmp_path):
    return Compose(spawn, tmp_path, GYMQ_RUN="try1", GYMQ_SAMPLES="2")


def test_every_part_of_the_design_is_a_service():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    started = {"redis", "agent", "model", "resource", "executor", "sink", "flower"}
    assert {name for name, service in services.items() if "profiles" not in service} == started
    # And what `docker compose up` starts neither produces nor is Prometheus
    profiles = {name: service["profiles"] for name, service in services.items() if "profiles" in service}
    assert profiles == {"produce": ["produce"], **{key: ["monitoring"] for key in ("metrics", "prometheus", "grafana")}}
    # And the server keeps what it confirmed, and lets nobody in without a password
    for words in ("--appendonly yes", "--maxmemory-policy noeviction", "requirepass $$REDISCLI_AUTH"):
        assert words in services["redis"]["command"][2]
    # And nothing listens beyond this machine
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_no_container_has_a_right_of_root_or_may_gain_one():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service.get("privileged") is None, name


def test_no_password_stands_on_a_command_line():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert not [name for name, service in services.items() if "PASSWORD" in str(service.get("command"))]


def test_every_image_is_pinned_by_its_digest():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    images = {service["image"] for service in services.values()} - {"gymq"}
    for file in (ROOT / "deploy" / "kubernetes").rglob("*.yaml"):
        images |= set(re.findall(r"image: (\S+)", file.read_text())) - {"gymq", "gymq-vllm"}
    images |= set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert len(images) == 4
    assert [image for image in images if not re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)] == []


def test_without_a_password_nothing_starts():
    with pytest.raises(AssertionError, match="GYMQ_PASSWORD is not set: choose a password"):
        interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), {})


def test_the_image_holds_all_that_the_package_is_made_of():
    import tomllib

    folders = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values())
    copied = set(re.findall(r"^COPY (\S+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert copied == folders | {"deploy/locks"}


@pytest.mark.slow
def test_rollouts_pass_from_the_producer_to_the_sinks_file(compose):
    # Given the server and everything that `docker compose up` starts
    (compose.folder / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in weather(ROWS)))
    redis = compose.start("redis")
    with Redis.from_url(compose.settings.redis_url) as client:
        wait_until(lambda: _answers(client), 20, "the server")
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendonly")["appendonly"] == "yes"
    assert compose.password not in " ".join(psutil.Process(redis.pid).cmdline())
    processes = {name: compose.start(name) for name in ("agent", "model", "resource", "executor", "sink", "flower")}
    wait_until(lambda: {info["role"] for info in registered(compose.settings).values()} == {"agent", "model", "resource"}, 60)
    # When rows are produced
    producer = compose.start("produce")
    assert producer.wait(60) == 0, compose.log("produce")
    # Then the sink writes them all, and ends well
    assert processes["sink"].wait(60) == 0, compose.log("sink")
    lines = [json.loads(line) for line in (compose.folder / "out" / "try1.jsonl").read_bytes().splitlines()]
    assert sorted(line["rollout_id"] for line in lines) == sorted(
        f"try1.{row}.{sample}" for row in range(ROWS) for sample in (0, 1)
    )
    assert {line["status"] for line in lines} == {"completed"}
    wait_for_state(compose.settings, "try1", "done")
    assert status(compose.settings, "try1").by_status == {"completed": 2 * ROWS}
    # And Flower answers, and every other service still runs and ends well when it is told to
    wait_until(lambda: _status(f"http://127.0.0.1:{compose.flower_port}/") == 401, 30, "Flower")
    for name in ("agent", "model", "resource", "executor"):
        assert processes[name].poll() is None, compose.log(name)
        processes[name].terminate()
    for name in ("agent", "model", "resource", "executor"):
        assert processes[name].wait(60) == 0, compose.log(name)
    processes["flower"].terminate()
    redis.terminate()
    assert redis.wait(20) == 0


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
