"""`gymq run`, the real one: to its end, stopped, killed, continued, and refused."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time

import pyarrow.parquet as pq
import pytest

from tests.support.cli import data, family, ids, kill_all
from tests.support.farm import PLUGIN
from tests.support.model_server import run_server
from tests.support.redis_server import running
from tests.support.tiers import heavy, slow
from tests.support.waiting import wait_until


def expected(rows: int, samples: int = 1) -> list[tuple[int, int]]:
    return list(itertools.product(range(rows), range(samples)))


def slow_run(slow_model: str, *more: object) -> tuple[object, ...]:
    """A run of 120 rollouts that takes some five seconds."""
    model = ("--model", "openai:mock", "--base-url", slow_model, "--concurrency", "20", "--samples", "2")
    limit = () if "--limit" in more else ("--limit", 60)
    return ("run", "weather", "--data", data("weather"), *model, *limit, "--out", "out.jsonl", *more)


def left_beside(cli) -> list[str]:
    """What a finished run leaves beside its file."""
    return [entry.name for entry in (cli.folder / "out.jsonl.gymq").iterdir()]


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


def test_what_was_killed_with_all_its_processes_goes_on_where_it_was(cli, slow_model: str):
    # Given a run with rollouts in its file and in flight
    process = cli.start(*slow_run(slow_model))
    cli.wait_rows(30)
    # When everything is killed at once
    kill_all(process)
    before = cli.rows()
    assert 30 <= len(before) < 120
    # Then the same command does the rest, each once
    done = cli(*slow_run(slow_model))
    after = cli.rows()
    assert ids(after) == expected(60, 2)
    assert after[: len(before)] == before
    assert {row["status"] for row in after} == {"completed"}
    assert f"{len(before)} rollouts are there" in done.stderr
    assert left_beside(cli) == ["run.json"]


@pytest.mark.heavy
def test_what_lost_its_server_folder_goes_on_from_the_file(cli, slow_model: str):
    process = cli.start(*slow_run(slow_model))
    cli.wait_rows(30)
    kill_all(process)
    subprocess.run(["rm", "-rf", cli.folder / "out.jsonl.gymq"], check=True)
    with (cli.folder / "out.jsonl").open("ab") as file:
        file.write(b'{"rollout_id":"weath')  # and the last line is torn
    before = cli.rows()
    cli(*slow_run(slow_model))
    after = cli.rows()
    assert ids(after) == expected(60, 2)
    assert after[: len(before)] == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), *heavy((signal.SIGTERM, 143))])
def test_a_signal_stops_in_order_says_what_was_kept_and_leaves_nothing_running(cli, slow_model: str, number: int, code: int):
    process = cli.start(*slow_run(slow_model))
    cli.wait_rows(10)
    started = family(process)
    assert len(started) >= 6  # itself, server, sink, agent, model, resource
    os.kill(process.pid, number)
    assert process.wait(20) == code
    assert not any(running(one.pid) for one in started)
    said = (cli.folder / "run.log").read_text()
    kept = len(cli.rows())
    assert f"{kept} of 120 rollouts are in out.jsonl; the same command continues" in said
    assert "Traceback" not in said
    cli(*slow_run(slow_model))
    assert ids(cli.rows()) == expected(60, 2)


@pytest.mark.heavy
@pytest.mark.parametrize(("option", "value"), [("--max-cost", 0.5), ("--max-time", 4)])
def test_a_limit_of_the_command_stops_in_order_and_the_same_command_goes_on(cli, slow_model: str, option: str, value: float):
    (cli.folder / "prices.yaml").write_text("models: {'openai:*': {input: 100, output: 100}}\n")
    args = slow_run(slow_model, "--prices", "prices.yaml")
    done = cli(*args, option, value, code=9)
    kept = cli.rows()
    assert len(kept) < 120
    assert f"stopping: {option}: " in done.stderr
    assert f"{len(kept)} of 120 rollouts are in out.jsonl; the same command continues" in done.stderr
    if option == "--max-cost":
        tokens = sum(row["usage"]["input_tokens"] + row["usage"]["output_tokens"] for row in kept)
        assert tokens / 10_000 == pytest.approx(0.5, rel=0.5)
    cli(*args)
    assert ids(cli.rows()) == expected(60, 2)
    assert cli.rows()[: len(kept)] == kept


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(cli, spawn, model: str):
    # Given calls in flight that take long
    argv = (
        "run",
        "weather",
        "--data",
        data("weather"),
        "--model",
        "openai:mock-hang",
        "--base-url",
        model,
        "--out",
        "out.jsonl",
    )
    process = cli.start(*argv)
    agent_log = cli.folder / "out.jsonl.gymq" / "logs" / "agent.log"
    wait_until(agent_log.exists, 20)
    time.sleep(3)
    started = family(process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) == 130
    wait_until(lambda: not any(running(one.pid) for one in started), 10)


@pytest.mark.heavy
def test_a_larger_limit_goes_on_with_an_interrupted_run_and_with_a_finished_one(cli, slow_model: str):
    process = cli.start(*slow_run(slow_model, "--limit", 30))
    cli.wait_rows(10)
    os.kill(process.pid, signal.SIGINT)
    process.wait(20)
    cli(*slow_run(slow_model, "--limit", 50))
    assert ids(cli.rows()) == expected(50, 2)
    cli(*slow_run(slow_model, "--limit", 60))
    rows = cli.rows()
    assert ids(rows) == expected(60, 2)
    tasks = [json.loads(line)["id"] for line in data("weather").read_text().splitlines()[:60]]
    assert {(row["rollout_id"].split(".")[1], row["task_id"]) for row in rows} == {
        (str(i), task) for i, task in enumerate(tasks)
    }


@pytest.mark.slow
def test_a_complete_file_is_left_alone_and_nothing_is_started(cli):
    args = ("run", "weather", "--data", data("weather"), "--limit", 5, "--model", "scripted", "--out", "out.jsonl")
    cli(*args)
    before = (cli.folder / "out.jsonl").read_bytes()
    done = cli(*args)
    assert "complete: all 5 rollouts are there" in done.stderr
    assert done.stdout.splitlines()[-1] == "out.jsonl"
    assert (cli.folder / "out.jsonl").read_bytes() == before
    assert left_beside(cli) == ["run.json"]
    # and one whose verifier has failed says so, and why
    (cli.folder / "out.jsonl").write_bytes(
        before.replace(b'"reward":1.0,"no_reward":null', b'"reward":null,"no_reward":"verifier: KeyError: 3 (dice.py:9)"', 2)
    )
    done = cli(*args, code=8)
    assert "no reward: verifier" in done.stdout
    said = "gymq: 2 rollouts have no reward, though their environment has a verifier; the first says: verifier: KeyError: 3"
    assert said in done.stderr


@pytest.mark.slow
def test_more_samples_top_a_finished_file_up_and_a_file_of_another_run_is_refused_with_the_differences(cli):
    args = ("run", "weather", "--data", data("weather"), "--limit", 5, "--model", "scripted", "--out", "out.jsonl")
    cli(*args, "--samples", 2)
    first = cli.rows()
    done = cli(*args, "--samples", 5)
    assert ids(cli.rows()) == expected(5, 5)
    assert cli.rows()[:10] == first
    assert any(line.startswith("pass@5") for line in done.stdout.splitlines())
    assert "complete: all 10 rollouts" in cli(*args, "--samples", 2).stderr
    before = (cli.folder / "out.jsonl").read_bytes()
    refused = cli(*args, "--max-turns", 9, "--temperature", 0.5, code=2)
    assert "another run (--max-turns: 30 → 9; --sampling temperature: not given → 0.5)" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    (cli.folder / "notes.jsonl").write_text("mine\n")
    assert "notes.jsonl:1: is no rollout" in cli(*args[:-1], "notes.jsonl", code=2).stderr
    assert (cli.folder / "out.jsonl").read_bytes() == before
    assert (cli.folder / "notes.jsonl").read_text() == "mine\n"


@pytest.mark.heavy
def test_parquet_that_was_killed_goes_on_where_it_was_and_has_each_rollout_once(cli, slow_model: str):
    args = (*slow_run(slow_model)[:-1], "out.parquet")

    def ended() -> int:
        said = cli("status", "--of", "out.parquet", "--json", code=None).stdout
        return sum(run["ended"] for run in json.loads(said or "{}").get("runs", ()))

    process = cli.start(*args)
    wait_until(lambda: ended() >= 20, 40)
    kill_all(process)
    done = cli(*args)
    rows = pq.read_table(cli.folder / "out.parquet").to_pylist()
    assert ids(rows) == expected(60, 2)
    assert done.stdout.splitlines()[-1] == "out.parquet"
    assert "complete: all 120 rollouts" in cli(*args).stderr


@pytest.mark.slow
def test_a_second_run_on_the_same_file_is_refused_while_the_first_goes_on(cli, slow_model: str):
    long = slow_run(slow_model, "--samples", 20)  # a second command takes seconds to get there
    process = cli.start(*long)
    cli.wait_rows(5)
    refused = cli(*long, code=5)
    assert "another `gymq run` works on it" in refused.stderr
    before = len(cli.rows())
    cli.wait_rows(before + 1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert len(set(ids(cli.rows()))) == len(cli.rows())


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


@pytest.mark.slow
def test_a_wrong_key_stops_the_run_soon_and_with_the_right_one_all_is_done(cli):
    (url,) = itertools.islice(server := run_server("--port", "0", "--key", "right"), 1)
    args = ("run", "weather", "--data", data("weather"), "--model", "openai:mock", "--base-url", f"{url}/v1")
    args += ("--limit", 60, "--concurrency", 8, "--out", "out.jsonl")
    # Given a run with a wrong key, which stopped before more than are in flight had failed
    cli.env["OPENAI_API_KEY"] = "wrong"
    done = cli(*args, code=7)
    rows = cli.rows()
    assert 3 <= len(rows) <= 8
    assert {row["error"]["kind"] for row in rows} == {"model_access"}
    assert "correct the key in OPENAI_API_KEY" in done.stderr
    assert "the same command with --retry-failed" in done.stderr
    # When it is run again with the right one
    cli.env["OPENAI_API_KEY"] = "right"
    cli(*args, "--retry-failed")
    # Then all of its rollouts are there, each once
    assert ids(cli.rows()) == expected(60)
    assert {row["status"] for row in cli.rows()} == {"completed"}
    next(server, None)


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
        "run.yaml: unknown option 'sample'; known: data" in cli("run", "weather", "--config", "run.yaml", *args, code=2).stderr
    )


@pytest.mark.heavy
def test_a_run_on_a_given_server_leaves_it_and_finds_it_again(cli, redis_url: str, slow_model: str):
    process = cli.start(*slow_run(slow_model, "--redis", redis_url))
    cli.wait_rows(20)
    elsewhere = [arg if arg != "out.jsonl" else "elsewhere.jsonl" for arg in slow_run(slow_model, "--redis", redis_url)]
    assert "on this server writes to" in cli(*elsewhere, code=2).stderr
    kill_all(process)
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


@pytest.mark.heavy
def test_rollouts_that_were_deleted_from_the_file_are_done_again(cli, slow_model: str):
    process = cli.start(*slow_run(slow_model))
    cli.wait_rows(20)
    os.kill(process.pid, signal.SIGINT)
    process.wait(20)
    (cli.folder / "out.jsonl").unlink()
    cli(*slow_run(slow_model))
    assert ids(cli.rows()) == expected(60, 2)


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
