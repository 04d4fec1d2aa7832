"""`gymq run`, the real one: to its end, watched, and refused."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.support.cli import data, family, ids, kill_all
from tests.support.farm import PLUGIN
from tests.support.runs import expected, left_beside, slow_run
from tests.support.tiers import slow


@pytest.mark.parametrize(("environment", "reward"), [("weather", 1.0), *slow(("counter", 1.0), ("guess_number", None))])
def test_a_run_goes_to_its_end_and_the_summary_says_what_the_file_holds(cli, environment: str, reward: float | None):
    done = cli(
        "run",
        environment,
        "--data",
        data(environment),
        "--model",
        "scripted",
        "--limit",
        40,
        "--samples",
        4,
        "--out",
        "out.jsonl",
    )
    rows = cli.rows()
    assert ids(rows) == expected(40, 4)
    mean = sum(row["reward"] for row in rows) / len(rows)
    if reward is not None:
        assert mean == reward
    lines = done.stdout.splitlines()
    table = {line[:15].strip(): line[15:].split()[-1] for line in lines if len(line.split()) > 1}
    assert table["rollouts"] == "160"
    assert float(table["mean reward"]) == pytest.approx(mean, abs=0.001)
    assert float(table["mean turns"]) == pytest.approx(sum(row["turns"] for row in rows) / len(rows), abs=0.01)
    assert {"pass@1", "pass@2", "pass@4"} <= table.keys()
    assert float(table["rollouts/s"]) > 0
    assert table["completed"] == "160"
    assert "a policy in code played the model" in done.stdout
    assert lines[-1] == "out.jsonl"
    assert left_beside(cli) == ["run.json"]


@pytest.mark.slow
def test_several_environments_have_a_column_each(cli):
    lines = [json.loads(data(name).read_text().splitlines()[0]) | {"environment": name} for name in ("weather", "counter")]
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = cli("run", "weather", "--data", "rows.jsonl", "--model", "scripted", "--out", "out.jsonl")
    assert any(line.split() == ["counter", "weather", "all"] for line in done.stdout.splitlines())
    assert sorted(row["environment"] for row in cli.rows()) == ["counter", "weather"]


@pytest.mark.slow
def test_a_model_server_is_asked_and_its_tokens_are_counted(cli, model: str):
    args = ("run", "weather", "--data", data("weather"), "--limit", 10, "--model", "openai:mock", "--base-url", model)
    done = cli(*args, "--api", "responses", "--temperature", 0.5, "--max-tokens", 100, "--out", "deep/er/out.jsonl")
    rows = cli.rows("deep/er/out.jsonl")
    assert [row["reward"] for row in rows] == [1.0] * 10
    tokens = [sum(row["usage"][kind] for row in rows) for kind in ("input_tokens", "output_tokens")]
    assert f"{tokens[0]} / {tokens[1]}" in done.stdout
    assert tokens[1] > 0
    assert "policy" not in done.stdout


@pytest.mark.slow
def test_bad_rows_are_one_line_each_and_the_others_are_rolled_out(cli):
    good = data("weather").read_text().splitlines()[:4]
    bad = ["{not json", "[1, 2]", '{"id": "x"}', '{"prompt": "hi", "environment": "nosuch"}']
    (cli.folder / "rows.jsonl").write_text("\n".join(line for pair in zip(good, bad, strict=True) for line in pair) + "\n")
    done = cli("run", "weather", "--data", "rows.jsonl", "--model", "scripted", "--out", "out.jsonl", code=3)
    lines = [line for line in done.stderr.splitlines() if line.startswith("rows.jsonl:")]
    assert [line.split(": ")[0] for line in lines] == [f"rows.jsonl:{number}" for number in (2, 4, 6, 8)]
    assert "unknown environment 'nosuch'" in lines[3]
    assert ids(cli.rows()) == expected(4)
    assert "4 rows were bad" in done.stderr


@pytest.mark.slow
def test_rollouts_that_fail_are_counted_by_kind_and_the_exit_code_says_so(cli, model: str):
    args = ("run", "weather", "--data", data("weather"), "--limit", 6, "--model", "openai:mock-400", "--base-url", model)
    done = cli(*args, "--out", "out.jsonl", code=6)
    rows = cli.rows()
    assert {row["status"] for row in rows} == {"failed"}
    assert all(row["error"]["message"] for row in rows)
    assert any(line.split() == ["failed:", rows[0]["error"]["kind"], "6"] for line in done.stdout.splitlines())
    assert "6 rollouts failed or were cancelled" in done.stderr
    assert f"the first to fail says: {rows[0]['error']['message']}" in done.stderr


@pytest.mark.parametrize(
    ("change", "code", "line"),
    [
        ({"--data": "gone.jsonl"}, 3, "gone.jsonl: no such file"),
        ({"ENV": "nosuch"}, 2, "unknown environment 'nosuch'; installed: counter"),
        ({"--agent": "nosuch"}, 2, "unknown agent 'nosuch'"),
        ({"--model": "nosuch:x"}, 2, "unknown backend 'nosuch'"),
        ({"--redis": "redis://127.0.0.1:1/0"}, 4, "Redis cannot be reached"),
        ({"--redis": "nonsense"}, 2, "--redis: "),
        ({"--prompt-config": "gone.yaml"}, 2, "gone.yaml: "),
        ({"--config": "gone.yaml"}, 2, "gone.yaml: "),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(cli, change: dict[str, str], code: int, line: str):
    given = {"ENV": "weather", "--data": str(data("weather")), "--model": "scripted", "--out": "out.jsonl", **change}
    environment = given.pop("ENV")
    done = cli("run", environment, *itertools.chain(*given.items()), code=code)
    assert done.stderr.startswith("gymq: ")
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(cli.folder.iterdir()) == []


@pytest.mark.slow
def test_a_file_of_options_gives_what_the_command_line_does_not(cli):
    (cli.folder / "run.yaml").write_text(
        f"data: {data('weather')}\nmodel: scripted\nsamples: 3\nlimit: 2\nmax-turns: 9\nsampling:\n  top_p: 0.5\n"
    )
    cli("run", "weather", "--config", "run.yaml", "--limit", 4, "--out", "out.jsonl")
    assert ids(cli.rows()) == expected(4, 3)
    (cli.folder / "run.yaml").write_text("sample: 3\n")
    args = ("--data", data("weather"), "--model", "scripted", "--out", "no.jsonl")
    assert (
        "run.yaml: unknown option 'sample'; did you mean samples?"
        in cli("run", "weather", "--config", "run.yaml", *args, code=2).stderr
    )


@pytest.mark.heavy
def test_a_run_on_a_given_server_leaves_it_and_finds_it_again(cli, redis_url: str, slow_model: str):
    process = cli.start(*slow_run(slow_model, "--redis", redis_url))
    cli.wait_rows(20)
    kill_all(process)
    elsewhere = [arg if arg != "out.jsonl" else "elsewhere.jsonl" for arg in slow_run(slow_model, "--redis", redis_url)]
    assert "on this server writes to" in cli(*elsewhere, code=2).stderr
    cli(*slow_run(slow_model, "--redis", redis_url))
    assert ids(cli.rows()) == expected(60, 2)
    assert "done" in cli("status", "--redis", redis_url).stdout


@pytest.mark.heavy
def test_a_run_can_be_watched_and_cancelled_while_it_goes_on(cli, slow_model: str):
    process = cli.start(*slow_run(slow_model))
    cli.wait_rows(10)
    found = json.loads(cli("status", "--of", "out.jsonl", "--json").stdout)
    (one,) = found["runs"]
    assert found["workers"] == {"agent": 1, "model": 1, "resource": 1}
    assert found["warnings"] == []
    cli("cancel", one["config"]["name"], "--of", "out.jsonl")
    assert process.wait(30) == 6
    assert "was cancelled" in (cli.folder / "run.log").read_text()
    kept = cli.rows()
    assert {row["status"] for row in kept} == {"completed", "cancelled"}
    # What was cancelled in flight has ended; what had not begun is done by the same command.
    cli(*slow_run(slow_model), code=6)
    assert ids(cli.rows()) == expected(60, 2)
    assert cli.rows()[: len(kept)] == kept


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_said(cli, slow_model: str):
    process = cli.start(*slow_run(slow_model))
    cli.wait_rows(10)
    for one in family(process):
        if "worker" in one.cmdline() and "model" in one.cmdline():
            one.kill()
    assert process.wait(60) == 0
    rows = cli.rows()
    assert ids(rows) == expected(60, 2)
    assert {row["status"] for row in rows} == {"completed"}
    assert "model: killed by SIGKILL" in (cli.folder / "run.log").read_text()


@pytest.mark.slow
def test_an_executor_is_started_if_and_only_if_something_is_isolated(cli):
    cli.env["PYTHONPATH"] = str(PLUGIN)
    rows = [{"prompt": "go", "calls": ["pid", "leave", "pid"]}, {"prompt": "go", "calls": ["pid"]}]
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli("run", "hostile", "--data", "rows.jsonl", "--model", "scripted", "--out", "out.jsonl")
    assert [row["reward"] for row in cli.rows()] == [1.0, 1.0]
    results = [message["content"] for row in cli.rows() for message in row["messages"] if message["role"] == "tool"]
    assert sum(result.isdigit() for result in results) == 3


@pytest.mark.heavy
def test_a_judge_has_a_worker_of_its_own(cli, model: str):
    cli.env["PYTHONPATH"] = str(PLUGIN)
    rows = [{"prompt": "go", "journal": str(cli.folder / "journal"), "questions": 2}] * 3
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ("run", "judged", "--data", "rows.jsonl", "--model", "openai:mock", "--base-url", model, "--max-tool-calls", 5)
    cli(*args, "--judge", "scripted:judge", "--data-retries", 1, "--out", "out.jsonl")
    for row in cli.rows():
        assert (row["reward"], row["model"]) == (0.75, "openai:mock")
        assert [call["name"] for call in row["calls"] if call["kind"] == "ask"] == ["scripted:judge"] * 2
    # A judge's address without a judge would be the address of nobody.
    done = cli(*args, "--judge-base-url", model, "--out", "other.jsonl", code=2)
    assert "name it with --judge SPEC" in done.stderr
