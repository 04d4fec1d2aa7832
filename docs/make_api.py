"""Write docs/api.md: the public names of gymq with the first paragraph of each docstring. `make api` runs it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import gymq

PAGE = Path(__file__).parent / "api.md"

#: The page that explains the names of each module.
PAGES = {
    "api.agent": "agents.md",
    "api.backend": "models.md",
    "api.environment": "environments.md",
    "client.consumer": "results.md",
    "client.producer": "python.md",
    "client.publish_weights": "models.md",
    "client.sink_loop": "results.md",
    "errors": "python.md",
    "process.sandbox": "environments.md",
    "script.run": "python.md",
    "script.run_result": "python.md",
    "settings": "python.md",
    "store.runs": "python.md",
    "wire.message": "python.md",
    "wire.rollout": "results.md",
    "wire.task": "environments.md",
    "wire.token_branches": "rollouts.md",
}

#: Headings of the page, and the packages whose names stand below each.
SECTIONS = {
    "Environments, agents, backends and sinks": ("gymq.api.", "gymq.client.sink_loop", "gymq.process."),
    "Runs and results": ("gymq.client.", "gymq.script.", "gymq.store."),
    "Messages, tasks and rollouts": ("gymq.wire.",),
    "Settings and errors": ("gymq.",),
}

HEAD = """\
# Public names

`from gymq import ...` gives these names, and they are all: every other module and name is private by convention and may change
without notice. This page is made from the docstrings (`make api`); a test compares it with them.
"""


def section_of(name: str) -> str:
    """Return the heading below which a public name stands.

    Args:
        name: a name of `gymq.__all__`.
    """
    module = getattr(gymq, name).__module__ + "."
    return next(heading for heading, prefixes in SECTIONS.items() if module.startswith(prefixes))


def page_of(name: str) -> str:
    """Return a link to the page that explains a public name.

    Raises:
        ValueError: the page does not name it.
    """
    module = getattr(gymq, name).__module__.removeprefix("gymq.")
    page = "python.md" if name.endswith("_async") else PAGES[module]
    if not re.search(rf"\b{name}\b", (PAGE.parent / page).read_text()):
        raise ValueError(f"docs/{page} does not explain gymq.{name}; name it there, or correct PAGES")
    return f"[{page}]({page})"


def describe(name: str) -> str:
    """Return a public name's row: the name, its module, and the first paragraph of its docstring."""
    value = getattr(gymq, name)
    paragraph = (inspect.getdoc(value) or "").split("\n\n", maxsplit=1)[0]
    if not paragraph:
        raise ValueError(f"gymq.{name} has no docstring; write one")
    shown = name if inspect.isclass(value) else f"{name}()"
    return f"| `{shown}` | `{value.__module__}` | {' '.join(paragraph.split()).replace('|', chr(92) + '|')} | {page_of(name)} |"


def page() -> str:
    """Return the text of docs/api.md."""
    parts = [HEAD]
    for heading in SECTIONS:
        names = sorted((name for name in gymq.__all__ if section_of(name) == heading), key=str.lower)
        parts.append(
            f"## {heading}\n\n| Name | Defined in | Purpose | Page |\n| --- | --- | --- | --- |\n"
            + "\n".join(map(describe, names))
            + "\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
