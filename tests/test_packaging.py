"""The installed packages: every one of the tree, and a wheel in which each module can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def packages() -> Iterator[str]:
    """Yield the packages of the tree: each folder with an `__init__.py`, or with Lua scripts, under a top-level package."""
    for name, folder in SETUPTOOLS["package-dir"].items():
        for path in [ROOT / folder, *(ROOT / folder).rglob("*/")]:
            if "tests" not in path.parts and ((path / "__init__.py").exists() or list(path.glob("*.lua"))):
                yield ".".join([name, *path.relative_to(ROOT / folder).parts])


def test_pyproject_lists_every_package_of_the_tree():
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages())


@pytest.mark.slow
def test_every_module_can_be_imported_from_a_built_wheel(tmp_path: Path):
    # Given a wheel of what git knows, so that no file of a previous build is in it
    source = tmp_path / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "bench/", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "target"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=120)
    # When its modules are imported, by a process that finds them before the clone
    code = (
        "import importlib, sys; from tests.support.modules import import_all, modules; left = import_all();"
        "bad = [n for n in modules() if n in sys.modules and not (sys.modules[n].__file__ or '').startswith(sys.argv[1])];"
        "assert not bad, bad; print(len(list(modules())), left)"
    )
    support = tmp_path / "support" / "tests" / "support"
    support.mkdir(parents=True)
    (support / "modules.py").write_bytes((ROOT / "tests" / "support" / "modules.py").read_bytes())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(target), str(support.parents[1])])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    # Then none is missing
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 150
