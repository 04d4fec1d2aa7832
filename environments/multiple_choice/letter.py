"""The model's choice of a letter, read from its text by the rules of NeMo Gym's `mcqa` server (August 2026).

Written from that server's documented behaviour and its tests' cases. Every rule takes linear time, since the text is the
model's; only an `output_regex`, the work of the row's author, may take longer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

#: Letters of other scripts that stand for A to D: Arabic, Bengali, full-width Latin.
_SCRIPTS = ("\u0623\u0628\u062c\u062f", "\u0985\u09ac\u09a1\u09a2", "\uff21\uff22\uff23\uff24")
_LOCAL = {ord(local): f" {letter}" for script in _SCRIPTS for local, letter in zip(script, "ABCD", strict=True)}

_BOX = "\\boxed{"
_TEXT = "\\text{"

#: One capital among other signs, as `[C]`; or a capital and a delimiter before the option's text, as `E: ...`.
_ALONE = re.compile(r"[^A-Za-z]*([A-Z])[^A-Za-z]*")
_LABEL = re.compile(r"\s*([A-Z])\s*[:).-]")

_ANSWER = re.compile(r"answer\s*:\s*(.+)", re.I)
_MARKDOWN_ANSWER = re.compile(r"[*_]{0,2}answer[*_]{0,2}\s*:[*_\s]{0,2}(.+)", re.I)

_SINGLE = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_FIRST = re.compile(r"([A-Za-z])(?![A-Za-z0-9])")
_CAPITAL = re.compile(r"\b[A-Z]\b")
_BETWEEN = re.compile(r"\s*[/|&,;]\s*|\s+(?:or|and)\s+|\s+", re.I)


class Options:
    """The options of a question.

    Args:
        rows: `{letter: text}` objects; an option whose text is None is no option.
    """

    def __init__(self, rows: list[dict[str, str | None]] | None) -> None:
        pairs = [(letter.upper(), text) for row in rows or () for letter, text in row.items() if text is not None]
        self.texts = [(letter, _plain(text)) for letter, text in pairs if len(letter) == 1 and letter.isalpha()]
        self.letters = {letter for letter, _ in self.texts}

    def named(self, text: str) -> str | None:
        """Return the option with this text, or None."""
        wanted = _plain(text)
        return next((letter for letter, option in self.texts if option == wanted), None)

    def within(self, text: str) -> str | None:
        """Return the one option whose text is part of this text; None for none or several."""
        place = _plain(text)
        letters = {letter for letter, option in self.texts if option and option in place}
        return letters.pop() if len(letters) == 1 else None


def by_regex(text: str, patterns: str | list[str], options: Options) -> str | None:
    """Read the letter by the row's own patterns, the first that finds one; each counts where it matches last.

    Args:
        text: the model's text.
        patterns: one pattern or several, case-insensitive; an invalid one finds nothing.
        options: the question's options; a letter outside them counts too.
    """
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            matches = re.findall(pattern, text, re.I)
        except re.error:
            continue
        if not matches:
            continue
        match = matches[-1]
        # With several groups the match is a tuple: the group that took part.
        captured = match if isinstance(match, str) else next(filter(None, match), "")
        captured = captured.strip().translate(_LOCAL).strip().upper()
        letter = captured if len(captured) == 1 and captured.isalpha() else options.named(captured)
        if letter is not None:
            return letter
    return None


def boxed(text: str, options: Options) -> str | None:
    r"""Read the letter from the last \boxed{}: `C`, `[C]`, `C: its text`, each also within \text{}."""
    inner = _box(text)
    if inner is None:
        return None
    inner = _unwrap(inner.strip())
    match = _ALONE.fullmatch(inner) or _LABEL.match(inner)
    return match[1] if match and match[1] in options.letters else None


def boxed_or_text(text: str, options: Options) -> str | None:
    r"""As `boxed`, else the one option whose text stands in the last \boxed{}."""
    return boxed(text, options) or options.within(_box(text) or "")


def answer_colon(text: str, options: Options) -> str | None:
    """Read what follows the first `Answer:` in its line: a letter or an option's whole text."""
    match = _ANSWER.search(text)
    if match is None:
        return None
    candidate = _unwrap(match[1]).strip()
    return candidate.upper() if candidate.upper() in options.letters else options.named(candidate)


def answer_colon_markdown(text: str, options: Options) -> str | None:
    """Read what follows the last `**Answer**:` that names one letter; a list of letters names none."""
    for answer in reversed(_MARKDOWN_ANSWER.findall(text)):
        candidate = answer.translate(_LOCAL).strip().strip("*_` \t\n\r.,;:")
        letter = _one_letter(candidate)
        if letter in options.letters and not _is_list(candidate, options):
            return letter
    return None


#: The grading modes by name.
MODES: dict[str, Callable[[str, Options], str | None]] = {
    "strict_single_letter_boxed": boxed,
    "lenient_boxed": boxed_or_text,
    "lenient_answer_colon": answer_colon,
    "lenient_answer_colon_md": answer_colon_markdown,
}


def _plain(text: str) -> str:
    """Return text in lower case, with one space between words."""
    return " ".join(text.lower().split())


def _box(text: str) -> str | None:
    """Return the content of the last box, up to its matching brace; None without a box or without the brace."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start:i]
    return None


def _unwrap(text: str) -> str:
    r"""Remove every \text{} around the whole text."""
    while text.startswith(_TEXT) and text.endswith("}"):
        text = text[len(_TEXT) : -1].strip()
    return text


def _one_letter(text: str) -> str | None:
    """Return the letter at an answer's beginning, else its last single capital."""
    if len(text) == 1:
        return text.upper()
    if match := _FIRST.match(text):
        return match[1].upper()
    capitals = _CAPITAL.findall(text)
    return capitals[-1] if capitals else None


def _is_list(text: str, options: Options) -> bool:
    """Return whether a text names two different options side by side, as `A/B` or `A and B`."""
    letters = [match for match in _SINGLE.finditer(text) if match[0].upper() in options.letters]
    return any(
        left[0].upper() != right[0].upper() and _BETWEEN.fullmatch(text, left.end(), right.start())
        for left, right in pairwise(letters)
    )
