"""The rule of CONTRIBUTING.md for docstrings: with two parameters or more, `Args:` says what each of them is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = [path for folder in ("gymq", "workers") for path in sorted((ROOT / folder).rglob("*.py"))]

#: Marks of functions whose parameters are described elsewhere: by the options of a command, by the function that they overload.
ELSEWHERE = ("click.", "options", "overload", ".command")


def functions(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public functions and methods of a module's public classes."""
    for member in node.body:
        if isinstance(member, ast.ClassDef) and not member.name.startswith("_"):
            yield from functions(member)
        elif isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
            yield member


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The names of its parameters, without the instance."""
    every = function.args
    rest = [one for one in (every.vararg, every.kwarg) if one is not None]
    return {one.arg for one in [*every.posonlyargs, *every.args, *every.kwonlyargs, *rest]} - {"self", "cls"}


def test_the_parameters_of_public_functions_are_described():
    silent = [
        f"{path.relative_to(ROOT)}:{function.lineno}: {function.name}"
        for path in MODULES
        for function in functions(ast.parse(path.read_text()))
        if len(parameters(function)) >= 2
        and "Args:" not in (ast.get_docstring(function) or "Args:")
        and not any(mark in ast.unparse(decorator) for decorator in function.decorator_list for mark in ELSEWHERE)
    ]
    assert silent == []
