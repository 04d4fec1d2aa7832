"""Makes a process one of the next version: its schema is one higher, and calls, replies, plans and states have a field more.

Python imports this by itself when this folder is on PYTHONPATH.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader

#: What is replaced in the sources of which modules.
CHANGES = {
    "gymq.wire.calls": [
        ("SCHEMA = 1\n", "SCHEMA = 2\n"),
        # Each behind the last field of its struct.
        (
            "    note: bytes | None = None\n\n    @property",
            "    note: bytes | None = None\n    later: str = 'call'\n\n    @property",
        ),
        ("    declare: bool = True\n", "    declare: bool = True\n    later: str = 'plan'\n"),
        ("    waited: float = 0.0\n", "    waited: float = 0.0\n    later: str = 'reply'\n"),
    ],
    "gymq_workers.agent.state": [("    counted: float = 0.0\n", "    counted: float = 0.0\n    later: str = 'state'\n")],
}


class _Loader(SourceFileLoader):
    def get_code(self, fullname):
        source = self.get_source(fullname)
        for old, new in CHANGES[fullname]:
            if source.count(old) != 1:
                raise ImportError(f"{fullname} has {old!r} {source.count(old)} times")
            source = source.replace(old, new)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname not in CHANGES:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        found.loader = _Loader(fullname, found.origin)
        return found


sys.meta_path.insert(0, _Finder())
