"""Traces of OpenTelemetry: whether they are wanted, where they go, and their beginning and end in an agent worker.

The standard `OTEL_*` variables decide. Without them nothing is imported and nothing is made.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gymq.observe.span_exporter import RolloutSpans

log = logging.getLogger(__name__)

#: Seconds that a worker waits at its end for the spans that it has not exported: the collector may be away.
FLUSH_LIMIT = 2.0

#: The variables of which any turns traces on, as in all programs that OpenTelemetry configures.
SWITCHES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

#: The name of OTLP's exporter by protocol.
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}

#: What brings an exporter.
_PACKAGES = {"otlp_proto_http": "'gymq[otel]'", "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc"}


def switch(environment: Mapping[str, str]) -> str:
    """Return the variable that turns traces on; empty: they are off."""
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if off or environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return ""
    return next((name for name in SWITCHES if environment.get(name)), "")


def exporters(environment: Mapping[str, str]) -> dict[str, metadata.EntryPoint | None]:
    """Return the exporters that the variables name, of those that are installed; None: one is not.

    Args:
        environment: the process's environment, in which traces are on.
    """
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = _PROTOCOLS.get(protocol or "http/protobuf", protocol or "")
    names = [name.strip() for name in (environment.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    installed = {point.name: point for point in metadata.entry_points(group="opentelemetry_traces_exporter")}
    return {name: installed.get(name) for name in (otlp if name == "otlp" else name for name in names)}


def missing(environment: Mapping[str, str] = os.environ) -> str:
    """Return a line on what traces lack to be made as the environment wants them; empty: nothing, or they are off."""
    if not (on := switch(environment)):
        return ""
    absent = [name for name, point in exporters(environment).items() if point is None]
    if not absent:
        return ""
    packages = [_PACKAGES[name] for name in absent if name in _PACKAGES]
    remedy = f"`pip install {' '.join(packages)}`" if packages else "install its package"
    return f"no traces: {on} is set, and OpenTelemetry's exporter {', '.join(absent)} is not installed; {remedy}, or unset it"


@cache
def start() -> RolloutSpans | None:
    """Make spans of this process's events from now on, if the environment wants traces; None: it does not, or they cannot be.

    A second call changes nothing. That they cannot be made is said in one log line: rollouts do not need them.
    """
    if not switch(os.environ):
        return None
    if line := missing():
        log.warning("%s", line)
        return None
    from gymq.observe.span_exporter import RolloutSpans

    try:
        spans = RolloutSpans([point.load()() for point in exporters(os.environ).values() if point is not None])
    except Exception as error:
        log.warning("no traces: OpenTelemetry's exporter cannot be made: %s: %s", type(error).__name__, error)
        return None
    spans.subscribe()
    return spans


async def flush() -> None:
    """Export the spans that are left, for a moment at most."""
    spans = start()
    if spans is None:
        return
    done, loop = asyncio.Event(), asyncio.get_running_loop()

    def export() -> None:
        spans.flush()
        with suppress(RuntimeError):  # the loop is closed: it waited no longer
            loop.call_soon_threadsafe(done.set)

    # A daemon, not a thread of the loop's pool: the end of the loop would wait for it.
    threading.Thread(target=export, name="gymq-traces", daemon=True).start()
    try:
        await asyncio.wait_for(done.wait(), FLUSH_LIMIT)
    except TimeoutError:
        log.warning("traces: some spans were not exported within %g s", FLUSH_LIMIT)
