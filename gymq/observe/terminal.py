"""Printed text, in which nothing acts on a terminal. All that gymq prints, and each of its log lines, passes here.

Rows, a model's words, an endpoint's errors and names in Redis may hold escape sequences, which would move the cursor, rename
the window, or write over the line that tells of them.
"""

from __future__ import annotations

import re
import sys

#: Characters that act on a terminal: controls of C0 but tab and line feed, DEL, C1, and those that turn the direction of
#: writing; and halves of surrogate pairs, which no terminal can be sent.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text whose acting characters stand as `\u001b`, which in JSON means the same as before."""
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str, *, err: bool = False, end: str = "\n") -> None:
    """Print a text.

    Args:
        text: it may have any characters; those that act on a terminal do not.
        err: to stderr instead of stdout.
        end: printed as it is behind it.
    """
    print(printable(text), end=end, file=sys.stderr if err else sys.stdout, flush=True)
