"""Redaction: log lines without keys and passwords."""

from __future__ import annotations

import os
import re

#: In the place of a secret.
HIDDEN = "***"

#: Variables of the environment whose values are secrets, by the end of their names.
SECRET_ENDINGS = ("_KEY", "APIKEY", "TOKEN", "PASSWORD", "PASSWD", "_PASS", "_PWD", "_PAT", "SECRET", "_BASIC_AUTH")

#: Characters of the shortest value that is hidden: a shorter one is no secret, and would blank out words.
SHORTEST = 8

# User and password of a URL; a bearer's token; a key with its well-known prefix, should it come from elsewhere.
_URL = re.compile(r"(?<=://)[^/\s@'\"]*@")
_TOKEN = re.compile(r"(?i)(?<=bearer )\S+|\bsk-[A-Za-z0-9_-]{8,}")


class Redaction:
    """Takes secrets out of text: passwords in URLs, tokens, and the secrets of this process's environment."""

    def __init__(self) -> None:
        names = [name for name in os.environ if name.upper().endswith(SECRET_ENDINGS)]
        values = {value for name in names if len(value := os.environ[name].strip()) >= SHORTEST}
        # The longest first: one may begin with another.
        self._known = re.compile("|".join(map(re.escape, sorted(values, key=len, reverse=True)))) if values else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if "://" in text:
            text = _URL.sub(f"{HIDDEN}@", text)
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return _TOKEN.sub(HIDDEN, text)
