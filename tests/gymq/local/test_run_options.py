"""One definition of a run's options: what the command line, the file, the record, the backend and the identity make of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gymq.errors import UsageError
from gymq.local.read_options import read_run_options
from gymq.local.run_identity import run_name
from gymq.local.run_options import OPTIONS, RunOptions

ROOT = Path(__file__).parents[3]

#: A value for each option that is part of the identity, and not its default.
EVERYTHING = {
    "model": "openai:qwen", "max_turns": 7, "max_rollout_tokens": 100, "max_seconds": 5.0,
    "max_working_seconds": 2.5, "max_tool_calls": 3, "call_timeout": 9.0, "infra_retries": 1, "data_retries": 2,
    "verify_retries": 3, "max_staleness": 4, "judge": "openai:j", "judge_base_url": "http://j/v1", "temperature": 0.7,
    "max_tokens": 64, "sampling": ("top_k=5", 'stop=["x"]'), "agent": "react", "base_url": "http://m/v1", "api": "responses",
    "token_ids": True, "tokenizer": "t", "engine": ("max_model_len=16",), "tool_parser": "hermes",
    "reasoning_parser": "qwen3",
}  # fmt: skip

#: Options in which the same run may differ.
FREE = {
    "samples": 4,
    "retry_failed": True,
    "max_cost": 1.0,
    "max_time": 60.0,
    "limit": 3,
    "concurrency": 9,
    "batch": 5,
    "rpm": 10.0,
    "tpm": 20.0,
    "learn": "false",
    "min_rpm": 5.0,
    "gpu": "0",
    "redis": "redis://x",
    "out": "o",
}


def read(tmp_path: Path, **given: object) -> RunOptions:
    (tmp_path / "rows.jsonl").write_text('{"prompt":"a"}\n')
    (tmp_path / "p.yaml").write_text('user: "{prompt}"\nsystem: Be brief.\n')
    return read_run_options({"data": str(tmp_path / "rows.jsonl"), "model": "scripted", **given}, ("data", "model"))


def test_the_identity_of_runs_that_were_made_before_is_the_same_still(tmp_path: Path):
    assert run_name(read(tmp_path).identity("weather")) == "weather-0c2691a2f5"
    everything = {**EVERYTHING, **FREE, "prompt_config": str(tmp_path / "p.yaml")}
    assert run_name(read(tmp_path, **everything).identity("weather")) == "weather-2a0b2e818e"


@pytest.mark.parametrize("name", EVERYTHING)
def test_another_value_is_another_run(tmp_path: Path, name: str):
    assert read(tmp_path, **{name: EVERYTHING[name]}).identity("e") != read(tmp_path).identity("e")


@pytest.mark.parametrize("name", FREE)
def test_the_same_run_may_differ_in_what_changes_no_rollout(tmp_path: Path, name: str):
    assert read(tmp_path, **{name: FREE[name]}).identity("e") == read(tmp_path).identity("e")


def test_the_page_names_all_options_that_are_not_part_of_the_identity():
    page = (ROOT / "docs/cli.md").read_text()
    (sentence,) = re.findall(r"hash of these[^.]*\.(.*) are not part of it", page)
    free = {name for name, option in OPTIONS.items() if not option.identity}
    resolved = {"temperature", "max_tokens", "sampling", "prompt_config"}  # in the identity by what they yield
    assert {name.strip("`-").replace("-", "_") for name in re.findall(r"`--[a-z-]+`", sentence)} == free - resolved - {"run"}


def test_the_record_and_the_backend_have_the_options_that_are_for_them(tmp_path: Path):
    options = read(tmp_path, **EVERYTHING, **FREE)
    config = options.config("weather", "r")
    assert (config.name, config.environment, config.model, config.batch) == ("r", "weather", "openai:qwen", 5)
    assert (config.max_seconds, config.verify_retries, config.max_staleness, config.judge) == (5.0, 3, 4, "openai:j")
    assert config.sampling == {"top_k": 5, "stop": ["x"], "temperature": 0.7, "max_tokens": 64}
    assert options.backend_options == {
        "base_url": "http://m/v1", "api": "responses", "token_ids": True, "tokenizer": "t", "rpm": 10.0, "tpm": 20.0,
        "learn": "false", "min_rpm": 5.0, "gpu": "0",
        "engine": '{"max_model_len":"16"}', "tool_parser": "hermes", "reasoning_parser": "qwen3",
    }  # fmt: skip
    assert options.judge_options == {"base_url": "http://j/v1"}
    assert read(tmp_path).backend_options == {}


def test_a_file_gives_what_the_command_line_does_not_and_may_switch_a_limit_off(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("max-turns: 9\nsamples: 3\nmax_tool_calls: 0\nengine: {a: 1}\nsampling: {top_p: 0.5, top_k: 2}\n")
    options = read(tmp_path, config=str(path), samples=4, sampling=("top_k=3",), engine=("b=2",))
    assert (options.max_turns, options.samples, options.max_tool_calls, options.engine) == (9, 4, 0, {"b": "2"})
    assert options.sampling == {"top_p": 0.5, "top_k": 3}
    path.write_text("")
    assert read(tmp_path, config=str(path)) == read(tmp_path)


@pytest.mark.parametrize(
    ("text", "given", "line"),
    [
        ("sample: 3", {}, "run.yaml: unknown option 'sample'; did you mean samples?"),
        ("samples: 0", {}, "run.yaml: samples: input should be greater than or equal to 1"),
        ("samples: four", {}, "run.yaml: samples: input should be a valid integer"),
        ("- 3", {}, "run.yaml: Expected object, got array; write lines such as samples: 4"),
        ("", {"limit": 10**10}, "--limit: input should be less than or equal to 1000000000"),
        ("", {"engine": ("x",)}, "--engine 'x': write KEY=VALUE"),
        ("", {"model": None}, "--model missing; see --help for an example"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, given: dict[str, object], line: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read(tmp_path, config=str(path), **given)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(line)


@pytest.mark.parametrize("module", ["pydantic", "celery", "redis", "yaml"])
def test_the_list_of_commands_is_shown_without_libraries_that_are_slow_to_import(module: str):
    code = f"import sys; from gymq.cli import cli; cli(['--help'], standalone_mode=False); sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
