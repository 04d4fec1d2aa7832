"""The wording of a program: lines that name options of the command line, as a call of `gymq.run` has them."""

from __future__ import annotations

import re

from gymq.local.run_options import OPTIONS, RunOptions

#: An option, and the value that stands behind it if one does: a word that is none of English, such as `SPEC` or `0,2`.
_OPTION = re.compile(
    r"(?<![\w-])--(?P<name>[a-z]+(?:-[a-z]+)*)\b(?: (?P<value>(?=[^\s;,`]*(?:[A-Z0-9/]|:\S))[^\s;`]+[^\s;:,.`]))?"
)


def in_python(line: str) -> str:
    """Return a line for a person with options as arguments, and the command as a call.

    Args:
        line: the line, as the command line has it.
    """
    return _OPTION.sub(_argument, line).replace("the same command", "the same call")


def _argument(found: re.Match[str]) -> str:
    name, value = found["name"].replace("-", "_"), found["value"]
    if name not in OPTIONS:
        return found[0]
    if RunOptions.model_fields[name].annotation is bool:
        return f"{name}=True" + (f" {value}" if value else "")
    return f'{name}="{value}"' if value else f"`{name}`"
