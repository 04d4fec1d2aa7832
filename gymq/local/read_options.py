"""Options of a run from the command line and from the file of `--config`, joined and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import msgspec
from pydantic import ValidationError

from gymq import plugins
from gymq.errors import UsageError
from gymq.local.run_options import OPTIONS, RunOptions
from gymq.settings import Settings
from gymq.yaml_file import convert, load_yaml

#: Remedy in the errors about a file of options.
_REMEDY = "write lines such as samples: 4"


def read_run_options(given: dict[str, Any], needed: Iterable[str]) -> RunOptions:
    """Join the command line with the file that `--config` names.

    Args:
        given: the options of the command line, None where not given.
        needed: options that must be there.

    Raises:
        UsageError: the file cannot be read, or an option is missing, unknown or wrong.
    """
    path = given.pop("config", None)
    parameters = _decode(parse_pairs(given.pop("sampling", ()), "--sampling"))
    engine = parse_pairs(given.pop("engine", ()), "--engine")
    stated = {name: value for name, value in given.items() if value is not None} | ({"engine": engine} if engine else {})
    merged = (_read_file(path) if path else {}) | stated
    if parameters:
        in_file = merged.get("sampling")
        merged["sampling"] = (in_file if isinstance(in_file, dict) else {}) | parameters
    missing = [f"--{name}" for name in needed if merged.get(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing; see --help for an example")

    def place(name: str) -> str:
        return f"--{name.replace('_', '-')}" if name in stated else f"{path}: {name}"

    return check_options(merged, place)


def check_options(values: dict[str, Any], place: Callable[[str], str]) -> RunOptions:
    """Return the options of a run, checked.

    Args:
        values: the options by name.
        place: returns an option's place, for errors.

    Raises:
        UsageError: an option is unknown or wrong.
    """
    merged = dict(values)
    if merged.get("redis") == "env":
        # All users of the machine can read a command line, and the URL holds a password.
        merged["redis"] = Settings.from_environment().redis_url
    try:
        return RunOptions.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            where = place(name).removesuffix(name)
            near = get_close_matches(name, OPTIONS, n=1)
            known = f"did you mean {near[0]}?" if near else f"known: {', '.join(OPTIONS)}"
            raise UsageError(f"{where}unknown option {name!r}; {known}") from None
        raise UsageError(f"{place(name)}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def check_names(environment: str, options: RunOptions) -> None:
    """Check that the names exist, and that the backends take their options.

    Args:
        environment: the environment of rows that name none.
        options: the options.

    Raises:
        UnknownName: something of that name is not installed.
        UsageError: an option makes no sense.
    """
    plugins.environment(environment)
    plugins.agent(options.agent)
    plugins.backend(options.model, options.backend_options)
    if options.judge and options.judge != options.model:
        plugins.backend(options.judge, options.judge_options)
    elif options.judge_base_url is not None:
        raise UsageError("--judge-base-url is of another model than the run's own: name it with --judge SPEC")


def parse_pairs(pairs: Iterable[str], option: str) -> dict[str, str]:
    """Return `KEY=VALUE` pairs as a dict.

    Args:
        pairs: the pairs.
        option: the option that they were given with, for the error.

    Raises:
        UsageError: a pair has no key or no `=`.
    """
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise UsageError(f"{option} {pair!r}: write KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _decode(pairs: dict[str, str]) -> dict[str, Any]:
    """Return the values decoded as JSON; a value that is not JSON is text."""
    values: dict[str, Any] = {}
    for name, text in pairs.items():
        try:
            values[name] = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            values[name] = text
    return values


def _read_file(path: str) -> dict[str, Any]:
    """Return the options of a file; an empty file holds none."""
    content = convert(load_yaml(path, object, _REMEDY) or {}, dict[Any, Any], path, _REMEDY)
    return {str(name).replace("-", "_"): value for name, value in content.items()}
