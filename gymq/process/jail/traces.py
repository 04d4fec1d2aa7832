"""The traces of a user who is gone, where anybody may write: files, System V's segments, semaphores and queues."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

#: Folders that are often open to all.
SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", "/run/shm", "/var/lock", "/var/crash")

#: Levels of folders open to all, one in another, that are searched.
DEPTH = 3

_IPC_RMID = 0

_libc = ctypes.CDLL(None, use_errno=True)


def remove(uid: int, places: Iterable[str]) -> None:
    """Remove what a user owns; this process should be that user, who can remove no one else's.

    Args:
        uid: the user.
        places: folders to search besides those of the system.
    """
    for place in dict.fromkeys(map(os.path.realpath, (*SHARED, *places))):
        _remove_files(uid, place, DEPTH)
    for number in _owned(uid, "shm", "shmid"):
        _libc.shmctl(number, _IPC_RMID, None)
    for number in _owned(uid, "sem", "semid"):
        _libc.semctl(number, 0, _IPC_RMID)
    for number in _owned(uid, "msg", "msqid"):
        _libc.msgctl(number, _IPC_RMID, None)


def _remove_files(uid: int, folder: str, depth: int) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid == uid:
                    os.spawnvp(os.P_WAIT, "rm", ["rm", "-rf", "--", entry.path])
                elif depth and stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IWOTH:
                    _remove_files(uid, entry.path, depth - 1)


def _owned(uid: int, kind: str, name: str) -> list[int]:
    """Return the numbers of a user's System V objects of a kind."""
    with suppress(OSError), open(f"/proc/sysvipc/{kind}") as file:
        titles, *rows = (line.split() for line in file)
        columns = [titles.index(column) for column in (name, "uid", "cuid")]
        objects = [[int(row[column]) for column in columns] for row in rows]
        return [number for number, owner, creator in objects if uid in (owner, creator)]
    return []
