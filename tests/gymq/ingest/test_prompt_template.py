"""Prompt files word a prompt from a row's fields, and reach no further."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymq.errors import DataError, UsageError
from gymq.ingest.prompt_template import PromptConfig
from gymq.wire.message import Message


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "prompt.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_holds_user_and_perhaps_system(tmp_path: Path):
    config = PromptConfig.load(write(tmp_path, "user: |-\n  Q: {question}\nsystem: Be {how}.\n"))
    assert config.messages({"question": "Why?", "how": "brief"}) == [Message("system", "Be brief."), Message("user", "Q: Why?")]
    assert PromptConfig.load(write(tmp_path, "user: Hi\n")).messages({}) == [Message("user", "Hi")]


def test_doubled_braces_are_braces_and_formats_apply():
    assert PromptConfig(user="{{x}} {a:.1f} {b!r}").messages({"a": 0.25, "b": "c"})[0].content == "{x} 0.2 'c'"


def test_values_with_braces_are_not_templates():
    assert PromptConfig(user="{a}").messages({"a": "{b}"})[0].content == "{b}"


@pytest.mark.parametrize(
    "template", ["{a.b}", "{a[0]}", "{a.__class__}", "{}", "{0}", "{a:{b}}", "{a!r.b}", "{", "}", "{a", "{a!z}", "{a[}"]
)
def test_a_template_that_is_more_than_plain_names_is_refused(template: str):
    with pytest.raises(UsageError, match="template"):
        PromptConfig(user="Hi", system=template)
    with pytest.raises(UsageError, match="template"):
        PromptConfig(user=template)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("system: only\n", "missing required field user"),
        ("user: 3\n", "Expected str, got int"),
        ("user: Hi\nsytem: typo\n", "sytem"),
        ("- a\n", "got array"),
        ("", "got null"),
        ("user: {a\n", "is not YAML"),
        ("user: '{a.b}'\n", "only plain names"),
        (b"user: \xff\n", "is not YAML"),
        ("user: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str | bytes, said: str):
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        PromptConfig.load(path)
    assert str(caught.value).startswith(f"{path}:")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"gone\.yaml: No such file"):
        PromptConfig.load(tmp_path / "gone.yaml")


def test_a_field_that_does_not_fit_its_format_is_a_bad_row():
    with pytest.raises(DataError, match="does not fit"):
        PromptConfig(user="{a:.1f}").messages({"a": [1]})


@given(st.text())
def test_any_template_is_taken_or_refused_in_words(template: str):
    try:
        config = PromptConfig(user=template)
    except UsageError:
        return
    with suppress(DataError):
        config.messages({})
