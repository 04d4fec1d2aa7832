"""Each mutation applies to this tree, and names tests that there are; `make mutations` sees that they find it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .mutation import FOLDER, ROOT, read, read_all

PATCH = """\
Mend: one is one.
Found by: tests/test_one.py::test_one

diff --git a/one.py b/one.py
--- a/one.py
+++ b/one.py
@@ -10,3 +10,3 @@ def f():
 before
-one
+two
 after
"""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.patch")), ids=lambda path: path.stem)
def test_a_mutation_applies_and_its_tests_are_there(path: Path):
    mutation = read(path)
    for changed, text in mutation.mutate(ROOT).items():
        assert text != changed.read_text()
        if changed.suffix == ".py":
            ast.parse(text)  # a test that cannot import it would fail for that
    for test in mutation.found_by:
        name, _, function = test.partition("::")
        assert test.startswith("tests/") and name.endswith(".py"), test
        functions = {node.name for node in ast.walk(ast.parse((ROOT / name).read_text())) if hasattr(node, "name")}
        assert function.rpartition("::")[2].partition("[")[0] in functions, f"no test {test}"


def test_each_mend_stands_once():
    mends = [mutation.mend for mutation in read_all()]
    assert len(mends) == len(set(mends))


def test_a_patch_is_found_by_its_lines_and_undone(tmp_path: Path):
    (tmp_path / "one.patch").write_text(PATCH)
    tree = tmp_path / "one.py"
    text = "before\nzero\nafter\n" * 3 + "before\none\nafter\nbefore\none\nafter\n"
    tree.write_text(text)
    with read(tmp_path / "one.patch").applied(tmp_path):
        assert tree.read_text() == "before\nzero\nafter\n" * 3 + "before\ntwo\nafter\nbefore\none\nafter\n"
    assert tree.read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Mend: one", "Mends: one", "needs one line 'Mend"),
        ("Found by", "Found", "Found by"),
        ("diff --git", "diff", "a diff"),
        ("--- a/one.py", "--- /dev/null", "neither creates nor removes"),
        (" before\n", " between\n", "no such lines near line 10"),
    ],
)
def test_a_patch_that_is_not_whole_or_does_not_apply_is_named(tmp_path: Path, old: str, new: str, says: str):
    (tmp_path / "one.py").write_text("before\none\nafter\n")
    (tmp_path / "one.patch").write_text(PATCH.replace(old, new))
    with pytest.raises(ValueError, match=f"^one.*{says}"):
        read(tmp_path / "one.patch").mutate(tmp_path)
