"""A Prometheus on loopback: Debian's, found on the PATH or fetched by apt once, for the queries of deploy/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from gymq.process.child_process import ChildProcess

#: Seconds for Prometheus to answer at all; it takes one on an idle machine.
START_LIMIT = 60.0


class NoPrometheus(Exception):
    """There is none here, and none can be fetched."""


def binary(name: str = "prometheus") -> Path:
    """Return a program of Debian's package `prometheus`: `prometheus` or `promtool`.

    Raises:
        NoPrometheus: it is not on the PATH, and apt does not give it.
    """
    if path := shutil.which(name):
        return Path(path)
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gymq" / "prometheus"
    if not (cached / "usr/bin" / name).exists():
        _fetch(cached)
    return cached / "usr/bin" / name


def _fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "-qq", "download", "prometheus"], cwd=folder, check=True, capture_output=True, timeout=120)
        (package,) = folder.glob("prometheus_*.deb")
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", package.name], cwd=folder, check=True, capture_output=True).stdout
        programs = ["./usr/bin/prometheus", "./usr/bin/promtool"]
        subprocess.run(["tar", "--extract", *programs], cwd=folder, input=files, check=True, capture_output=True)
        package.unlink()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise NoPrometheus(f"no prometheus on the PATH, and apt-get does not give its package: {error}") from error


class Prometheus:
    """A running one. Use it as a context manager.

    Args:
        folder: for its data, configuration and log.
        port: where it listens, on loopback.
        interval: seconds between two scrapes.
    """

    def __init__(self, folder: Path, port: int, interval: float = 1.0) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._targets = folder / "targets.json"
        self.scrape([])
        scrape = {
            "job_name": "gymq",
            "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": f"{interval:g}s"}],
        }
        config = {"global": {"scrape_interval": f"{round(interval * 1000)}ms"}, "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._argv = [
            str(binary()),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self._log = folder / "prometheus.log"

    def __enter__(self) -> Prometheus:
        self._child = ChildProcess(self._argv, {}, "prometheus", self._log)
        limit = time.monotonic() + START_LIMIT
        while not self._ready():
            if not self._child.alive or time.monotonic() > limit:
                self._child.kill()
                raise RuntimeError("prometheus does not come up: " + "\n".join(self._child.tail(5)))
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()

    def scrape(self, ports: Iterable[int]) -> None:
        """Scrape these ports of loopback from now on, and no others."""
        new = self._targets.with_suffix(".new.json")
        new.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}" for port in ports]}]))
        new.replace(self._targets)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now; return the vector's elements.

        Raises:
            urllib.error.HTTPError: it is no expression.
        """
        text = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._url}/api/v1/query?{text}", timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    def number(self, expression: str) -> float | None:
        """Evaluate an expression that gives one number now; None: it gives none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def _ready(self) -> bool:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self._url}/-/ready", timeout=2) as answer:
            return answer.status == 200
        return False
