"""The files of this Python that programs may see, and those among them that they must not: answers and credentials."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gymq.process.jail.root import SYSTEM

#: What programs see of a Python's folder: no `etc`, no `pip.conf`, nothing that somebody keeps beside it.
_PARTS = ("bin", "lib", "lib32", "lib64", "libexec", "include", "share", "ssl", "pyvenv.cfg")

#: Files of a Python's folder in a place that is shown whole, as `/usr` is.
_PRIVATE = ("pip.conf", "etc/pip.conf", ".condarc", "condarc")


#: Folders in which files of several packages lie side by side: that of all packages, that of their single modules' bytecode.
_COMMON = ("", "__pycache__")


@cache
def shown() -> list[str]:
    """Return the folders and files of this Python and its packages."""
    found = [f"{folder}/{part}" for folder in _folders() for part in _PARTS]
    return [path for path in found if os.path.exists(path)]


@cache
def covered() -> list[str]:
    """Return what must not be seen of that, and of the system: the packages of all environments, and files with credentials."""
    hidden = {os.path.realpath(f"{folder}/{name}") for folder in _folders() for name in _PRIVATE}
    for point in entry_points(group="gymq.environments"):
        hidden.update(_files(point))
    places = [*(place for place in SYSTEM if not os.path.islink(place)), *shown()]
    found = set()
    for path in hidden:
        for place in places:
            real = os.path.realpath(place)
            if path.startswith(f"{real}/") and os.path.exists(path):
                found.add(place + path[len(real) :])
    return sorted(path for path in found if not any(path.startswith(f"{other}/") for other in found))


def _folders() -> list[str]:
    """Return the folders of this Python, as they are named and where they are: links within them may use either name."""
    prefixes = (sys.base_prefix, sys.prefix)
    return list(dict.fromkeys(path for prefix in prefixes for path in (os.path.abspath(prefix), os.path.realpath(prefix))))


def _files(point: EntryPoint) -> Iterator[str]:
    """Yield the folders and files of the package that brings an environment."""
    with suppress(ImportError, ValueError):
        spec = find_spec(point.module.partition(".")[0])
        if spec is not None and spec.origin is not None:
            yield os.path.realpath(os.path.dirname(spec.origin) if spec.submodule_search_locations else spec.origin)
    if point.dist is not None:
        yield from _distributed(point.dist)
        yield from _edited(point.dist)


def _distributed(dist: Distribution) -> Iterator[str]:
    """Yield what an installation has brought: the highest folders that hold a file of it, or files where others lie, too."""
    files = [Path(str(file)) for file in dist.files or []]
    folders = {file.parent for file in files}
    for file in files:
        if not any(part.endswith((".dist-info", ".egg-info")) for part in file.parts):
            above = [folder for folder in reversed(file.parents) if folder in folders and folder.name not in _COMMON]
            whole = above[0] if above and ".." not in file.parts else file
            yield os.path.realpath(str(dist.locate_file(whole)))


def _edited(dist: Distribution) -> Iterator[str]:
    """Yield the folder of a project that is installed as it is being edited."""
    with suppress(ValueError, KeyError):
        origin = json.loads(dist.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            yield os.path.realpath(unquote(urlsplit(origin["url"]).path))
