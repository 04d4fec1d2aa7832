"""The image's packages: what pyproject.toml asks for, each by its hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

#: The locks by the extras that they are for.
LOCKS = {path.stem: path for path in (ROOT / "deploy" / "locks").glob("*.txt")}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(path: Path) -> dict[str, str]:
    """The version of each package; every one has a hash."""
    versions = {}
    for entry in re.split(r"(?<!\\)\n", path.read_text()):
        if entry and not entry.startswith("#"):
            requirement, *hashes = entry.replace("\\\n", " ").split()
            name, _, version = requirement.partition("==")
            assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), requirement
            versions[canonicalize_name(name)] = version
    return versions


def asked_for(extras: list[str]) -> list[Requirement]:
    """The requirements of the project itself, and those that its extras add."""
    lines = [*PROJECT["project"]["dependencies"]]
    lines += [line for extra in extras for line in PROJECT["project"]["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", ["data", "data,vllm"])
def test_a_lock_has_all_that_is_asked_for_in_a_version_that_will_do(name: str):
    versions = locked(LOCKS[name])
    for requirement in asked_for(name.split(",")):
        if requirement.marker is None or requirement.marker.evaluate({**default_environment(), "python_version": "3.12"}):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}: {version} is locked; run `make locks`"


def test_what_builds_packages_is_locked_as_well():
    (needed,) = (Requirement(line) for line in PROJECT["build-system"]["requires"])
    assert needed.specifier.contains(locked(LOCKS["build"])[needed.name])


def test_the_image_installs_nothing_but_what_is_locked():
    installs = re.findall(r"\bpip install (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(installs) == 3
    assert all("--require-hashes" in line for line in installs[:2])
    assert "--no-build-isolation" in installs[1] and "--no-deps --no-build-isolation --no-index" in installs[2]
