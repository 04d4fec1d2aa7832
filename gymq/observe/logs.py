"""Log lines: to stderr, for people or as JSON, with the process's role and worker and the work that they belong to.

gymq's loggers, and those of its workers and sinks, write from the level of the settings on; those of all other packages from
`WARNING` on, or as the caller says. A library does not set up logging: only the commands do.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

import msgspec

from gymq.observe import events
from gymq.observe.log_lines import line_of
from gymq.observe.redaction import Redaction
from gymq.observe.terminal import printable
from gymq.observe.work import work_in_hand
from gymq.settings import Settings
from gymq.wire.ids import place

#: Loggers that the level of the settings is for, with all below them.
OURS = ("gymq", "gymq_workers", "gymq_producers", "gymq_sinks")

#: Fields of a line that code may pass as `extra`, beside those that a record always has.
FIELDS = ("role", "worker", "run", "rollout", "call")

log = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()
_identity: dict[str, str] = {}


def identify(role: str, worker: str = "") -> None:
    """State what this process is, for all of its lines from now on.

    Args:
        role: the worker's role, or the command.
        worker: the worker's name in Redis; empty: it has none.
    """
    _identity.update(role=role, worker=worker)


def configure(settings: Settings, others: int = logging.WARNING) -> None:
    """Write log lines to stderr; what handlers of the root logger there were is replaced.

    Args:
        settings: the level and the form.
        others: the level of loggers that are not gymq's.
    """
    handler = Stderr()
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(others)
    for name in OURS:
        logging.getLogger(name).setLevel(settings.log_level.upper())
    tell()


def tell() -> None:
    """Write a line for each event that an operator wants to know of; may be called again."""
    events.unsubscribe(_tell)
    for kind in events.Event.__subclasses__():
        if line_of(kind) is not None:
            events.subscribe(kind, _tell)


def _tell(event: events.Event) -> None:
    line = line_of(type(event))
    assert line is not None
    level, text = line
    if isinstance(event, events.WorkerReady):
        identify(event.role, event.worker)
    if log.isEnabledFor(level):
        fields = {name: value for name in FIELDS if (value := getattr(event, name, ""))}
        log.log(level, "%s", text(event), extra={**fields, "event": event})


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """Return what a line belongs to: the process's role and worker, the run, the rollout and the call in hand."""
    fields = dict(_identity)
    work = work_in_hand.get()
    if work is not None:
        fields |= {"run": work.run, "rollout": place(work.rollout), "call": place(work.id)}
    for name in FIELDS:
        if value := getattr(record, name, ""):
            fields[name] = value
    return {name: fields[name] for name in FIELDS if fields.get(name)}


class Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a line comes: a progress display may stand in for it."""

    @property
    def stream(self) -> TextIO:
        """The present stderr."""
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        pass


class TextLines(logging.Formatter):
    """Lines for people: `2026-11-28T19:40:12.345Z INFO model-host-4211-9f3c: message (run=... rollout=... call=...)`."""

    def __init__(self) -> None:
        super().__init__()
        self._redact = Redaction()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and what was raised below it."""
        fields = fields_of(record)
        role, worker = fields.pop("role", ""), fields.pop("worker", "")
        line = f"{_time(record)} {record.levelname} {worker or role or 'gymq'}: {_message(record)}"
        if fields:
            line += f" ({' '.join(f'{name}={value}' for name, value in fields.items())})"
        if raised := _raised(self, record):
            line += f"\n{raised}"
        return printable(self._redact(line))


class JsonLines(logging.Formatter):
    """A JSON object a line; a line that an event made has its fields, too."""

    def __init__(self) -> None:
        super().__init__()
        self._redact = Redaction()

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        event = getattr(record, "event", None)
        about: dict[str, Any] = {}
        if isinstance(event, events.Event):
            about = {"event": type(event).__name__, **msgspec.to_builtins(event)}
        line: dict[str, Any] = {
            **about,
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            **fields_of(record),
            "message": _message(record),
        }
        if raised := _raised(self, record):
            line["exception"] = raised
        return printable(_encoder.encode({name: self._clean(value) for name, value in line.items()}).decode())

    def _clean(self, value: Any) -> Any:
        # Half a pair of surrogates has no UTF-8.
        return self._redact(value).encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    # Whoever may write to Redis may choose words that stand in a line: they must not begin another.
    return record.getMessage().replace("\r", "\\r").replace("\n", "\\n")


def _raised(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    return "\n".join([*parts, *([formatter.formatStack(record.stack_info)] if record.stack_info else [])])
