"""A mutation: a patch that takes one mend away, and the tests that must find that.

The patch's head names both, before the first `diff --git`:

    Mend: one sentence that says what holds
    Found by: tests/path/test_x.py::test_name     (one line or several)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parent

#: The folder that paths in patches start from.
ROOT = FOLDER.parents[1]


class Hunk(msgspec.Struct, frozen=True):
    """A passage of a file and what takes its place.

    Args:
        path: the file, relative to the root.
        line: where the passage was when the patch was made, from 1.
        old: the passage.
        new: what takes its place.
    """

    path: str
    line: int
    old: str
    new: str


class Mutation(msgspec.Struct, frozen=True):
    """One patch.

    Args:
        name: of the file, without `.patch`.
        mend: what holds without it.
        found_by: the tests that fail with it, as pytest names them.
        hunks: what it changes.
    """

    name: str
    mend: str
    found_by: list[str]
    hunks: list[Hunk]

    def mutate(self, root: Path) -> dict[Path, str]:
        """Return the text of each file that it changes, as it is with the mutation; nothing is written.

        Args:
            root: the tree's folder.

        Raises:
            ValueError: a passage is not there any more.
        """
        texts: dict[Path, str] = {}
        for hunk in self.hunks:
            path = root / hunk.path
            if path not in texts and not path.is_file():
                raise ValueError(f"{self.name}: {hunk.path} is not there; make the patch anew")
            text = texts.get(path) or path.read_text()
            # The passage is found by what it says: lines that were added above it do not matter.
            places = [match.start() for match in re.finditer(f"^{re.escape(hunk.old)}", text, re.MULTILINE)]
            if not places:
                raise ValueError(f"{self.name}: {hunk.path} has no such lines near line {hunk.line}; make the patch anew")
            at = min(places, key=lambda place: abs(text.count("\n", 0, place) + 1 - hunk.line))
            texts[path] = text[:at] + hunk.new + text[at + len(hunk.old) :]
        return texts

    @contextmanager
    def applied(self, root: Path) -> Iterator[None]:
        """Have the mutation in a tree for a while.

        Args:
            root: the tree's folder.

        Raises:
            ValueError: it does not apply.
        """
        mutated = self.mutate(root)
        originals = {path: path.read_text() for path in mutated}
        try:
            for path, text in mutated.items():
                path.write_text(text)
            yield
        finally:
            for path, text in originals.items():
                path.write_text(text)


def read(path: Path) -> Mutation:
    """Read a patch.

    Args:
        path: of the patch.

    Raises:
        ValueError: its head is not whole, or it creates, removes or renames files.
    """
    head, _, diff = path.read_text().partition("diff --git ")
    mends = re.findall(r"^Mend: (.+)$", head, re.MULTILINE)
    found_by = re.findall(r"^Found by: (\S+)$", head, re.MULTILINE)
    if len(mends) != 1 or not found_by or not diff:
        raise ValueError(
            f"{path.name}: needs one line 'Mend: ...', 'Found by: tests/....py::test_name' once or more, and a diff"
        )
    if re.search(r"^(--- |\+\+\+ )/dev/null|^rename ", diff, re.MULTILINE):
        raise ValueError(f"{path.name}: a mutation changes lines of files, and neither creates nor removes one")
    return Mutation(path.stem, mends[0], found_by, list(_hunks(diff)))


def read_all() -> list[Mutation]:
    """Read all patches, in the order of their names."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def _hunks(diff: str) -> Iterator[Hunk]:
    name, line, old, new = "", 0, "", ""
    for one in [*diff.splitlines(keepends=True), "@@ -0 "]:
        if one.startswith(("@@ ", "diff --git ")) and (old or new):
            yield Hunk(name, line, old, new)
            old, new, line = "", "", 0
        if one.startswith("@@ "):
            line = int(one.split()[1].lstrip("-").partition(",")[0])
        elif line:
            old += one[1:] if one[0] in " -" else ""
            new += one[1:] if one[0] in " +" else ""
        elif one.startswith("+++ b/"):
            name = one.strip()[len("+++ b/") :]
