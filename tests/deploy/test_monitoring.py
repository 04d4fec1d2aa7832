"""The dashboard and KEDA's queries, asked of a real Prometheus that scraped real workers. Grafana itself is not to be had."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.hpa import scaled_objects
from bench.prometheus import NoPrometheus, Prometheus, binary
from tests.support.servers import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
SCALED = scaled_objects(ROOT / "deploy/kubernetes/components/keda/scaledobjects.yaml")
ROWS = ROOT / "deploy/kubernetes/overlays/try/rows.jsonl"

#: The dashboard's expressions, by the panel's title.
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]

#: KEDA's, by role.
KEDA = [(role, trigger.query) for role, scaled in SCALED.items() for trigger in scaled.triggers]

#: Metrics that have no value while nothing fails, no model server is asked, and no weights are published.
SILENT = {
    "gymq_call_retries_total",
    "gymq_deaths_total",
    "gymq_kv_cache_ratio",
    "gymq_mail_redelivered_total",
    "gymq_model_requests_total",
    "gymq_policy_version_oldest",
    "gymq_policy_version_wanted",
    "gymq_rate_limit",
    "gymq_rate_limit_waiting",
}


def metrics_of(expression: str) -> set[str]:
    """Return the metrics that an expression names; of a histogram its own name."""
    return {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bgymq_\w+", expression)}


def program(name: str) -> Path:
    """Return a program of Prometheus, or skip."""
    try:
        return binary(name)
    except NoPrometheus as error:
        pytest.skip(f"{len(PANELS) + len(KEDA)} queries are not run: {error}")


def test_each_query_names_metrics_that_observability_md_lists():
    listed = set(re.findall(r"`(gymq_\w+)`", (ROOT / "docs" / "observability.md").read_text()))
    for where, expression in PANELS + KEDA:
        assert metrics_of(expression), where
        assert metrics_of(expression) <= listed, where


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & taken, panel["title"]
        assert box["x"] + box["w"] <= 24
        taken |= cells


def test_grafana_is_told_of_the_dashboard_and_its_source():
    (source,) = yaml.safe_load((MONITORING / "grafana-datasource.yml").read_text())["datasources"]
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "datasource" in panel}
    assert used == {source["uid"]}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    (provider,) = yaml.safe_load((MONITORING / "grafana-dashboards.yml").read_text())["providers"]
    mounts = [volume.split(":") for volume in services["grafana"]["volumes"]]
    for local, inside, *_ in mounts:
        assert (ROOT / local).is_file() or not local.startswith("./"), local
        if local.endswith("dashboard.json"):
            assert Path(inside).parent == Path(provider["options"]["path"])


def test_prometheus_scrapes_every_service_that_serves_metrics():
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (names,) = [config["names"] for config in job["dns_sd_configs"]]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    serving = {name for name, service in services.items() if "GYMQ_METRICS_PORT" in service.get("environment", {})}
    assert set(names) == serving - {"produce"}


@pytest.mark.slow
def test_promtool_takes_the_configuration():
    done = subprocess.run(
        [program("promtool"), "check", "config", MONITORING / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_query_runs_on_a_prometheus_that_scraped_real_workers(spawn, settings, tmp_path):
    program("prometheus")
    env = settings.environment()
    ports: list[int] = []

    def start(*words: str, flag: str = "--metrics-port") -> Any:
        ports.append(free_port())
        with (tmp_path / f"{words[0]}-{words[1] if len(words) > 1 else ''}.log").open("wb") as log:
            argv = [sys.executable, "-m", "gymq.cli", *words, flag, str(ports[-1])]
            return spawn(argv, env, cwd=tmp_path, stdout=log, stderr=log)

    # Given a worker of each role, a sink and the exporter, and a run that stays open
    for words in (["agent"], ["model", "--model", "scripted"], ["resource"], ["executor"]):
        start("worker", *words)
    start("metrics", flag="--port")
    start("sink", "jsonl", "--run", "seen", "--out", "seen.jsonl")
    words = ["produce", "weather", "--data", str(ROWS), "--run", "seen", "--model", "scripted", "--samples", "3"]
    argv = [sys.executable, "-m", "gymq.cli", *words, "--consumer", "jsonl", "--keep-open"]
    assert spawn(argv, env, cwd=tmp_path).wait(60) == 0
    with Prometheus(tmp_path, free_port()) as prometheus:
        prometheus.scrape(ports)
        # When it has scraped all of them, and the run's end
        wait_until(lambda: prometheus.number("sum(up)") == len(ports), 60, "every process is scraped")
        wait_until(lambda: prometheus.number("sum(gymq_rollouts_total)") == 60, 60, "all rollouts are counted")
        wait_until(lambda: prometheus.number("sum(gymq_sink_rollouts_total)") == 60, 30, "all are written")
        assert prometheus.number("sum(gymq_worker_ready)") == 4
        # Then each of KEDA's queries gives one number
        for role, expression in KEDA:
            values = [float(element["value"][1]) for element in prometheus.query(expression)]
            assert len(values) == 1, (role, expression)
            assert math.isfinite(values[0]), (role, expression)
        # And each of the dashboard's gives something, unless nothing of its kind has happened
        expressions = {expression for _, expression in PANELS if not metrics_of(expression) & SILENT}
        wait_until(lambda: all(prometheus.query(each) for each in expressions), 30, "every panel shows something")
        # And the others are expressions too, of which nothing is to be shown yet
        for _, expression in PANELS:
            prometheus.query(expression)
