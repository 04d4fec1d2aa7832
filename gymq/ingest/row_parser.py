"""Conversion of a producer's rows into tasks.

A row is a JSON object: one of NeMo Gym's (`responses_create_params`), or a simple one (`prompt` or `messages`).
docs/tasks.md describes both. A field that gymq does not know is kept for the verifier.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import NoReturn

import msgspec

from gymq.errors import DataError
from gymq.ingest.chat_items import MAX_DEPTH, Item, check, to_messages, too_deep
from gymq.ingest.nemo_gym import FunctionTool, Params, leftovers, to_sampling, to_tools
from gymq.ingest.prompt_template import PromptConfig
from gymq.ingest.sampling import check_sampling
from gymq.wire.json_types import JsonObject
from gymq.wire.message import Message, encode_message
from gymq.wire.task import Task

#: Characters of a row's id: it becomes part of keys, file names and log lines.
MAX_ID = 256

#: Bytes of a row: enough for images, too few for films. A task stays in Redis until its group has ended, and each worker
#: of the rollout reads it.
MAX_ROW = 32 * 2**20

#: Characters of an error line; quoted data may be long.
_MAX_LINE = 600

_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def parse_row(
    row: bytes | JsonObject, *, where: str, environment: str, known: Collection[str], prompt: PromptConfig | None = None
) -> Task:
    """Convert a row to a task.

    Args:
        row: JSON text, or a dict of JSON values.
        where: the row's place, such as `rows.jsonl:17`, for errors.
        environment: the environment of rows that name none.
        known: the names of the installed environments.
        prompt: the templates of opening messages, for rows that have none.

    Raises:
        DataError: the row is no JSON object, has no prompt, has malformed parts, or names an unknown environment.
    """
    try:
        return _task(_load(row), environment, known, prompt)
    except DataError as error:
        reason = str(error)
    except RecursionError:
        reason = "is nested too deeply; flatten it"
    except UnicodeEncodeError:
        reason = "holds half of a surrogate pair, which no text file can hold; remove it"
    except (TypeError, ValueError, OverflowError) as error:
        reason = f"cannot be written as JSON ({error}); use plain values only"
    raise DataError(_line(where, reason))


class TaskIds:
    """The ids of one source's rows so far; an id names one row.

    A hash of each id is kept, about 70 bytes; two ids with the same hash are less likely than a broken disk.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, task: Task, where: str) -> None:
        """Add a row's own id, if it has one.

        Args:
            task: the row's task.
            where: the row's place, for the error.

        Raises:
            DataError: an earlier row has the same id.
        """
        if not task.id:
            return
        key = hash(task.id)
        if key in self._seen:
            raise DataError(_line(where, f"id {task.id[:60]!r} is that of an earlier row too; give each row its own, or none"))
        self._seen.add(key)


def _line(where: str, reason: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in f"{where}: {reason}")
    return line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + "…"


def _load(row: bytes | JsonObject) -> JsonObject:
    if not isinstance(row, (bytes, dict)):
        raise DataError("is not a JSON object; write {...}, one row per line")
    # A dict goes through JSON too, so that both kinds of rows are checked and normalised alike.
    data = _encoder.encode(row) if isinstance(row, dict) else row.removeprefix(_BOM)
    if len(data) > MAX_ROW:
        raise DataError(f"is larger than {MAX_ROW >> 20} MiB; make it smaller, or let its environment load what is large")
    try:
        value = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError):
        _explain(data)
    if not isinstance(value, dict):
        raise DataError("is not a JSON object; write {...}, one row per line")
    if too_deep(value, data):
        raise DataError(f"is nested more than {MAX_DEPTH} levels deep; flatten it")
    return value


def _explain(data: bytes) -> NoReturn:
    """Raise a DataError with the reason why a row is no JSON; the fast decoder's own words are short, and at times wrong."""

    def constant(name: str) -> NoReturn:
        raise DataError(f"holds {name}, which is not JSON; write null")

    try:
        text = data.decode()
        json.loads(text, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start + 1}); convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not JSON ({error.msg.removesuffix(' at')} at character {error.pos + 1}); write one JSON object per line"
        ) from None
    except ValueError:
        raise DataError("holds a number that is too large; write it as text") from None
    if _SURROGATE.search(text):
        raise DataError("holds half of a surrogate pair (such as \\ud83d alone); remove it")
    raise DataError("holds a number that is too large; write it as text")


def _task(row: JsonObject, environment: str, known: Collection[str], prompt: PromptConfig | None) -> Task:
    name = row.get("environment")
    name = environment if name is None else check(name, str, "environment")
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise DataError(f"unknown environment {name[:60]!r}; use one that is installed: {names}")
    params = row.get("responses_create_params")
    if params is None:
        messages, sampling, tools, kept = _simple(row, prompt)
    else:
        messages, sampling, tools, kept = _nemo(row, check(params, JsonObject, "responses_create_params"), prompt)
    return Task(
        id=_id(row.get("id")),
        environment=name,
        encoded=[encode_message(message) for message in messages],
        fields=_encoder.encode(kept),
        sampling=_encoder.encode(sampling),
        tools=None if tools is None else _encoder.encode(tools),
    )


_Parts = tuple[list[Message], JsonObject, list[JsonObject] | None, JsonObject]


def _simple(row: JsonObject, prompt: PromptConfig | None) -> _Parts:
    asked = [field for field in ("prompt", "messages") if row.get(field) is not None]
    if len(asked) > 1:
        raise DataError("has both prompt and messages; keep one of them")
    if prompt is not None:
        if asked:
            raise DataError(f"has {asked[0]} of its own besides the prompt file; rename that field, or use no prompt file")
        messages = prompt.messages(row)
    elif asked:
        # `prompt` may hold messages too: trainers' data sets write it so.
        messages = _messages(check(row[asked[0]], str | list[Item], asked[0]), asked[0])
    else:
        raise DataError("has neither prompt nor messages nor responses_create_params; give it one, or use a prompt file")
    sampling = check_sampling(check(row.get("sampling"), JsonObject | None, "sampling") or {}, "sampling")
    tools = check(row.get("tools"), list[FunctionTool] | None, "tools")
    read = ("prompt", "messages", "tools", "sampling", "environment", "responses_create_params")
    kept = {field: value for field, value in row.items() if field not in read}
    return messages, sampling, None if tools is None else to_tools(tools, "tools"), kept


def _nemo(row: JsonObject, row_params: JsonObject, prompt: PromptConfig | None) -> _Parts:
    at = "responses_create_params"
    params: Params = check(row_params, Params, at)
    if prompt is not None:
        if params.input:
            raise DataError(f"has {at}.input of its own besides the prompt file; remove it, or use no prompt file")
        messages = prompt.messages(row)
    elif params.input is None:
        raise DataError(f"{at} has no input; give it one, or use a prompt file")
    else:
        messages = _messages(params.input, f"{at}.input")
    if params.instructions is not None:
        messages.insert(0, Message("system", params.instructions))
    kept = {field: value for field, value in row.items() if field not in (at, "environment")}
    rest = leftovers(row_params)
    if rest:
        kept[at] = rest
    tools = None if params.tools is None else to_tools(params.tools, f"{at}.tools")
    return messages, to_sampling(params, row_params, at), tools, kept


def _messages(asked: str | list[Item], at: str) -> list[Message]:
    return [Message("user", asked)] if isinstance(asked, str) else to_messages(asked, at)


def _id(value: object) -> str:
    """Return the row's own id, or "": without one (or with one that is neither text nor a number) its place names it."""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        return ""
    id = str(value)
    if len(id) > MAX_ID or not id.isprintable():
        raise DataError(f"id {id[:40]!r} is longer than {MAX_ID} characters or not printable; give a shorter, plain one")
    return id
