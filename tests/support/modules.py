"""The modules of gymq's packages; `python -m tests.support.modules` imports all of them."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator

#: Top-level packages, as they are installed.
ROOTS = ("gymq", "gymq_workers", "gymq_environments", "gymq_producers", "gymq_sinks")

#: What no installation needs: tests, and the scripts with which a clone makes the data that it ships.
CLONE_ONLY = {"tests", "data", "conftest", "__main__", "record", "demo"}

#: Modules that need what only an extra installs.
EXTRAS = {"datasets", "numpy", "opentelemetry", "pyarrow", "reasoning_gym", "torch", "transformers", "vllm"}


def modules() -> Iterator[str]:
    """Yield the name of each module, as the packages that are installed hold it."""
    for root in ROOTS:
        package = importlib.import_module(root)
        yield root
        for module in pkgutil.walk_packages(package.__path__, f"{root}."):
            if CLONE_ONLY.isdisjoint(module.name.split(".")):
                yield module.name


def import_all() -> list[str]:
    """Import every module; returns those that need an extra which is not installed.

    Raises:
        ImportError: a module cannot be imported for another reason.
    """
    left_out = []
    for name in modules():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in EXTRAS:
                raise
            left_out.append(name)
    return left_out


if __name__ == "__main__":
    left_out = import_all()
    print(f"imported {len(list(modules())) - len(left_out)} modules; need an extra: {', '.join(left_out) or 'none'}")
    sys.exit(len(left_out) > 20)
