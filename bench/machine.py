"""Where a measurement was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from gymq.process.embedded_redis import server_binary


def machine(*packages: str) -> dict[str, Any]:
    """Describe it.

    Args:
        packages: those whose versions matter; what is not installed is left out.
    """
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    server = subprocess.run([server_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": model,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "server": " ".join(word for word in server.split() if not word.startswith(("sha=", "build=", "malloc=", "bits="))),
        "packages": {name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def line(machine: dict[str, Any]) -> str:
    """The same in a sentence."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}, {machine['server']}; {packages}."
    )


def when(command: list[str], began: str, seconds: float, load: float) -> str:
    """What was run, when, and how busy the machine was with other things.

    Args:
        command: the command line.
        began: date, and perhaps more.
        seconds: that it took.
        load: the machine's load before.
    """
    return f"`{' '.join(command)}` on {began[:10]}, {seconds:.0f} s. The load before was {load:.1f}."


def now() -> str:
    """The time of day."""
    return time.strftime("%Y-%m-%d %H:%M:%S%z")
