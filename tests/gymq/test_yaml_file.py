"""A bad YAML file is one line: file, line, what is wrong, and what to write instead."""

from __future__ import annotations

import pytest

from gymq.errors import UsageError
from gymq.yaml_file import load_yaml

REMEDY = "write names"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a: 1\nb: [\n", ":3: is not YAML (expected the node content, but found '<stream end>'); write names"),
        (b"a: !!python/object/apply:os.getcwd []\n", ":1: is not YAML (could not determine a constructor for the tag"),
        (b"a: \xff\n", ": is not YAML ("),
        (b"[" * 5000, ": is not YAML (maximum recursion depth exceeded"),
        (b"- 1\n", ": Expected object, got array; write names"),
        (b"a: x\n", ": Expected int, got str - at $[...]; write names"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place_and_a_remedy(tmp_path, text: bytes, line: str):
    path = tmp_path / "names.yaml"
    path.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        load_yaml(path, dict[str, int], REMEDY)
    assert str(caught.value).startswith(f"{path}{line}")
    assert "\n" not in str(caught.value)


def test_a_good_file_has_the_type_that_was_asked_for(tmp_path):
    path = tmp_path / "names.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_yaml(path, dict[str, float], REMEDY) == {"a": 1.0}
    with pytest.raises(UsageError, match=r"none\.yaml: No such file or directory; name a file that can be read"):
        load_yaml(tmp_path / "none.yaml", dict[str, int], REMEDY)
