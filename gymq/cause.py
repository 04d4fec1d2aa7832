"""The cause of a failure of users' code, in one line."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from gymq.errors import GymqError, one_line

_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")

#: The beginnings of the files that are not the user's: frozen modules, gymq, Python's library, installed packages but those
#: whose installation points to a folder of the user's.
_INSTALLED = ("<", f"{Path(__file__).parent}/", *(f"{sysconfig.get_path(name)}/" for name in _LIBRARIES))


def cause(error: BaseException, module: str) -> str:
    """Return why a user's code failed, as one line: the error, and the place in each of the user's files that led to it.

    Args:
        error: as it was raised.
        module: the name of the module that failed: the files of its package are the user's, wherever they are.
    """
    said = one_line(str(error) if isinstance(error, GymqError) else f"{type(error).__name__}: {error}")
    places: list[str] = []
    package = module.partition(".")[0]
    frames = list(traceback.walk_tb(error.__traceback__))
    for frame, line in frames:
        file, imported = frame.f_code.co_filename, frame.f_globals.get("__name__", "").partition(".")[0]
        users = imported == package or not file.startswith(_INSTALLED)
        if users or (frame is frames[-1][0] and imported not in ("gymq", "importlib")):
            places.append(f"{file}:{line}")
    if isinstance(error, SyntaxError) and error.filename:  # its file never ran
        places.append(f"{error.filename}:{error.lineno}")
    return f"{said} ({', imported by '.join(reversed(places))})" if places else said
