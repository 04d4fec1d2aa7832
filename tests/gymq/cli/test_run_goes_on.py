"""`gymq run`, stopped or killed: what is there is kept, and the same command goes on."""

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
from tests.support.runs import expected, left_beside, slow_run
from tests.support.tiers import heavy
from tests.support.waiting import wait_until


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


@pytest.mark.slow
def test_a_judge_with_a_wrong_key_stops_the_run_as_soon(cli):
    (url,) = itertools.islice(server := run_server("--port", "0", "--key", "right"), 1)
    cli.env |= {"PYTHONPATH": str(PLUGIN), "OPENAI_API_KEY": "wrong"}
    row = {"prompt": "go", "journal": str(cli.folder / "journal")}
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(60)))
    judge = ("--judge", "openai:mock", "--judge-base-url", f"{url}/v1", "--concurrency", 8, "--out", "out.jsonl")
    done = cli("run", "judged", "--data", "rows.jsonl", "--model", "scripted", *judge, code=7)
    assert 3 <= len(cli.rows()) <= 8
    assert "correct the key in OPENAI_API_KEY" in done.stderr
    next(server, None)


@pytest.mark.heavy
def test_rollouts_that_were_deleted_from_the_file_are_done_again(cli, slow_model: str):
    process = cli.start(*slow_run(slow_model))
    cli.wait_rows(20)
    os.kill(process.pid, signal.SIGINT)
    process.wait(20)
    (cli.folder / "out.jsonl").unlink()
    cli(*slow_run(slow_model))
    assert ids(cli.rows()) == expected(60, 2)
