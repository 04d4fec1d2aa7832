"""YAML and JSON files that a person writes: options of a run, prices, prompt templates."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from gymq.errors import UsageError

T = TypeVar("T")


def load_yaml(path: str | Path, kind: type[T], remedy: str) -> T:
    """Return the content of a YAML file, converted to a type.

    Args:
        path: the file.
        kind: the type, as `msgspec.convert` knows it.
        remedy: an instruction that ends the error message, as "write lines such as samples: 4".

    Raises:
        UsageError: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; name a file that can be read") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageError(f"{place}: is not YAML ({reason}); {remedy}") from None
    return convert(content, kind, str(path), remedy)


def convert(content: object, kind: type[T], place: str, remedy: str) -> T:
    """Return plain values converted to a type.

    Args:
        content: the values.
        kind: the type, as `msgspec.convert` knows it.
        place: the file or option that holds them.
        remedy: an instruction that ends the error message.

    Raises:
        UsageError: the values are of another type.
    """
    try:
        return msgspec.convert(content, kind)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{place}: {str(error).replace('`', '')}; {remedy}") from None
