"""The names in the pages are those of the code: files, modules, classes, links between pages."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path

import click
import pytest

from gymq.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "bench/*.md", "environments/*.md", "environments/*/*.md")
    for path in ROOT.glob(pattern)
)
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))

#: Folders of the repository: a name in backticks that begins with one of them is a path.
FOLDERS = r"(?:gymq|workers|environments|producers|sinks|tests|docs|bench|deploy|\.ci)/"

#: Folders that CONTRIBUTING.md reserves for what is not built yet; a folder that exists leaves this list.
RESERVED = frozenset({"gymq/evaluation/", "gymq/view/", "sinks/trainers/", "environments/adapters/", "workers/gateway/"})

#: Queues and tasks of Celery, which are spelled like modules.
CELERY_NAMES = frozenset({"gymq.enqueue", "gymq.isolated", "gymq.rollouts"})


def in_backticks(page: Path) -> list[str]:
    """The inline code of a page, without its fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)


def entry_point_groups() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"])


def span_attributes() -> set[str]:
    """The attributes of gymq's own in spans, which are spelled like modules."""
    return set(re.findall(r'"(gymq\.\w+)"', (ROOT / "gymq" / "observe" / "spans.py").read_text()))


@cache
def names_of(path: Path) -> frozenset[str]:
    """The classes and functions of a module, methods included."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


@PAGE
def test_each_path_in_a_page_exists(page: Path):
    for text in in_backticks(page):
        path = re.match(FOLDERS + r"[\w./*-]*$", text)
        if path is None or text in RESERVED:
            continue
        assert list(ROOT.glob(text)) if "*" in text else (ROOT / text).exists(), f"{page.name} names {text}"


@PAGE
def test_each_dotted_name_in_a_page_resolves(page: Path):
    known = CELERY_NAMES | entry_point_groups() | span_attributes()
    for text in in_backticks(page):
        for dotted in re.findall(r"(?<![\w/.-])(gymq(?:_\w+)?(?:\.[A-Za-z_]\w*)+)(?![\w/{])", text):
            assert dotted in known or resolves(dotted), f"{page.name} names {dotted}"


@PAGE
def test_each_link_of_a_page_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


def test_reserved_folders_do_not_exist_yet():
    assert not [name for name in RESERVED if (ROOT / name).exists()]


def glossary() -> list[tuple[str, str, list[str]]]:
    """Each term, its file, and the names that stand beside it."""
    rows = re.findall(r"^\| \*\*([^*]+)\*\* \| .* \| ([^|]+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.M)
    entries = []
    for term, where in rows:
        path, *names = re.findall(r"`([^`]+)`", where)
        entries.append((term, path, names))
    return entries


def test_the_glossary_names_files_and_what_is_in_them():
    entries = glossary()
    assert len(entries) >= 40
    for term, path, names in entries:
        assert (ROOT / path).is_file(), f"{term}: {path}"
        if names:
            assert set(names) <= names_of(ROOT / path), f"{term}: {path} has no {names}"


def test_the_glossary_has_each_term_once():
    terms = [term for term, _, _ in glossary()]
    assert len(terms) == len(set(terms))


def test_the_public_names_are_those_of_the_docstrings():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None and spec.loader is not None
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    assert make_api.PAGE.read_text() == make_api.page(), "run `make api`"


def test_the_packages_stand_in_the_order_of_the_import_law():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if "gymq.store" in contract.get("layers", ()))
    table = (ROOT / "docs" / "architecture.md").read_text().split("## Packages")[1].split("\n`workers/`")[0]
    cells = re.findall(r"^\| (`.*`) \|", table, re.M)
    listed = [re.sub(r"/$|\.py$", "", path).replace("/", ".") for cell in cells for path in re.findall(r"`([^`]+)`", cell)]
    assert listed == layers


@PAGE
def test_each_make_target_in_a_page_exists(page: Path):
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"(?:`|^)make ([a-z][\w -]*)", page.read_text(), re.M)
    missing = {target for line in named for target in line.split()} - targets
    assert not missing, f"{page.name} names make {missing}"


@PAGE
def test_each_command_in_a_page_exists(page: Path):
    for text in in_backticks(page):
        name = re.match(r"gymq ([a-z][\w-]*)", text)
        if name is not None:
            assert cli.get_command(click.Context(cli), name[1]) is not None, f"{page.name} names gymq {name[1]}"


@PAGE
def test_each_script_in_a_page_exists(page: Path):
    scripts = {path.name for path in (ROOT / "gymq" / "store" / "lua").glob("*.lua")}
    assert {name for text in in_backticks(page) for name in re.findall(r"\b\w+\.lua\b", text)} <= scripts
