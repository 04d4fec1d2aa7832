"""`make mutations`: takes each mend away in a copy of the tree, sees a test find that, and writes the table.

python -m tests.mutations.run [NAME ...]     NAME: of a patch, without `.patch`; then no table is written
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import msgspec

from .mutation import ROOT, Mutation, read_all

PAGE = ROOT / "docs" / "reliability.md"

#: What the table stands behind.
HEADING = "## Mends that are taken away\n"

#: Seconds for one test, a little more than pytest grants it. A test that a mutation makes hang has found it.
LIMIT = 330.0

#: What the copy does without: environments, caches, results.
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "out", "build")

#: pytest's exit codes.
PASSED, FAILED = 0, 1


class Finding(msgspec.Struct):
    """What a test made of a mutation.

    Args:
        mutation: the mutation.
        test: the test.
        seconds: from the start of pytest to its end.
        what: "found", or why it does not count.
    """

    mutation: Mutation
    test: str
    seconds: float
    what: str


class Copy:
    """A copy of the tree whose own interpreter, and every process that it starts, imports the copy.

    Args:
        folder: an empty folder for it.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        shutil.copytree(ROOT, self.root, ignore=LEFT_OUT, symlinks=True)
        venv.EnvBuilder(symlinks=True).create(folder / "venv")
        self.python = folder / "venv" / "bin" / "python"
        packages = folder / "packages"
        packages.mkdir()
        for name in ("workers", "environments", "producers", "sinks"):
            (packages / f"gymq_{name}").symlink_to(self.root / name)
        (packages / "gymq").symlink_to(self.root / "gymq")
        # Our dependencies, and the metadata with our entry points, without the .pth file that leads to the original tree.
        theirs = [path for path in sys.path if path.endswith("site-packages")]
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        (site / "tree.pth").write_text("\n".join([str(packages), *theirs]))

    def run(self, test: str) -> tuple[int | None, float, str]:
        """Run one test.

        Args:
            test: as pytest names it.

        Returns:
            pytest's exit code, None after the limit; seconds; what it printed.
        """
        argv = [self.python, "-m", "pytest", "-x", "-p", "no:cacheprovider", test]
        # Many examples of Hypothesis, the same each time; Python files are compiled anew, whatever their times say.
        env = {**os.environ, "GYMQ_HYPOTHESIS": "search", "PYTHONDONTWRITEBYTECODE": "1"}
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                argv, cwd=self.root, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code: int | None = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)  # so that the fixtures end what they started
                code = None
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(0)
            return code, time.monotonic() - began, output.read()


def try_all(mutations: Iterable[Mutation], copy: Copy) -> list[Finding]:
    """Try each mutation on each of its tests, and print a line for each.

    Args:
        mutations: the mutations.
        copy: the tree.
    """
    healthy: dict[str, str] = {}
    findings: list[Finding] = []
    for mutation in mutations:
        for test in mutation.found_by:
            if test not in healthy:
                code, _, output = copy.run(test)
                healthy[test] = "" if code == PASSED else output
            if healthy[test]:
                finding = Finding(mutation, test, 0.0, "the test does not pass without the patch")
                print(healthy[test][-4000:])
            else:
                with mutation.applied(copy.root):
                    code, seconds, output = copy.run(test)
                what = {FAILED: "found", None: "found", PASSED: "NOT FOUND"}.get(code, f"pytest ended with {code}")
                finding = Finding(mutation, test, seconds, what)
                if what != "found":
                    print(output[-4000:])
            findings.append(finding)
            print(f"{finding.what:10} {finding.seconds:6.1f} s  {mutation.name}  {test}", flush=True)
    return findings


def table(findings: list[Finding]) -> str:
    """The table, and the line below it."""
    lines = ["| mend | test that finds its absence | seconds |", "| --- | --- | ---: |"]
    for one in findings:
        lines.append(f"| {one.mutation.mend} | `{one.test}` | {one.seconds:.0f} |")
        if one.what != "found":
            lines[-1] = f"| {one.mutation.mend} | `{one.test}`: {one.what} | - |"
    found = len({one.mutation.name for one in findings if one.what == "found"})
    total = len({one.mutation.name for one in findings})
    return "\n".join([*lines, "", f"One run of `make mutations` on {date.today()}: {found} of {total} found.", ""])


def write(findings: list[Finding]) -> None:
    """Put the table into the page, in the place of the last one."""
    head, heading, rest = PAGE.read_text().partition(HEADING)
    assert heading, f"{PAGE} has no heading {HEADING!r}"
    told, _, old = rest.partition("\n| ")
    _, next_heading, after = old.partition("\n## ")
    PAGE.write_text(f"{head}{heading}{told}\n{table(findings)}{next_heading}{after}")


def main() -> None:
    """Try all mutations, or those that are named."""
    mutations = read_all()
    names = set(sys.argv[1:])
    unknown = names - {mutation.name for mutation in mutations}
    if unknown:
        sys.exit(f"no mutation {', '.join(sorted(unknown))} in tests/mutations")
    with tempfile.TemporaryDirectory(prefix="gymq-mutations-") as folder:
        findings = try_all([one for one in mutations if not names or one.name in names], Copy(Path(folder)))
    if not names:
        write(findings)
    missed = [one for one in findings if one.what != "found"]
    if missed:
        sys.exit(f"{len(missed)} of {len(findings)} tries did not find the mutation")


if __name__ == "__main__":
    main()
