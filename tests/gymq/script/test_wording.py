"""Lines of the command line, as a program reads them."""

from __future__ import annotations

import pytest

from gymq.errors import UsageError
from gymq.script.run import run
from gymq.script.wording import in_python


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("the same command with --retry-failed does them", "the same call with retry_failed=True does them"),
        ("--max-time: 3 s are over", "`max_time`: 3 s are over"),
        ("or choose another --out", "or choose another `out`"),
        ("--sampling temperature: 1 → 2", "`sampling` temperature: 1 → 2"),
        ("needs prices; give them with --prices P.yaml", 'needs prices; give them with prices="P.yaml"'),
        ("try --base-url http://h:1/v1, or `--judge SPEC`", 'try base_url="http://h:1/v1", or `judge="SPEC"`'),
        ("`vllm serve --help` lists them", "`vllm serve --help` lists them"),
    ],
)
def test_options_become_arguments(line: str, said: str):
    assert in_python(line) == said


def test_what_a_call_refuses_is_in_the_words_of_the_call():
    with pytest.raises(UsageError, match=r"give them with prices=.P\.yaml."):
        run("weather", [{"prompt": "x"}], model="scripted", max_cost=1.0)
