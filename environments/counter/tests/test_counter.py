import msgspec
import pytest
from gymq_environments.counter.data.make import rows
from gymq_environments.counter.environment import Counter, CounterState

from gymq.errors import ToolError


@pytest.fixture
def counter():
    return Counter()


async def test_a_rollout_begins_at_the_rows_initial_count(counter, make_task):
    opening = await counter.open(make_task(initial_count=3))
    assert opening.state == CounterState(count=3)


async def test_incrementing_changes_the_state_in_place(counter):
    state = CounterState(count=3)
    assert msgspec.json.decode(await counter.increment_counter(count=4, state=state)) == {"success": True}
    assert msgspec.json.decode(await counter.get_counter_value(state=state)) == {"count": 7}


def test_only_reading_the_counter_is_read_only():
    flags = {tool.name: tool.read_only for tool in Counter.spec().tools}
    assert flags == {"increment_counter": False, "get_counter_value": True}


def test_the_model_sees_no_state_among_the_arguments():
    schemas = {tool.name: tool.schema["function"]["parameters"]["properties"] for tool in Counter.spec().tools}
    assert list(schemas["increment_counter"]) == ["count"]
    assert schemas["get_counter_value"] == {}


async def test_a_number_that_no_state_can_hold_is_the_models_fault(counter):
    state = CounterState(count=0)
    with pytest.raises(ToolError, match="cannot go beyond"):
        await counter.increment_counter(count=2**63, state=state)
    await counter.increment_counter(count=2**63 - 1, state=state)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=CounterState) == state


def test_a_count_that_is_no_number_is_the_models_fault():
    with pytest.raises(ToolError, match="Invalid arguments for increment_counter: count"):
        Counter.tools["increment_counter"].arguments('{"count": "many"}')


@pytest.mark.parametrize(("count", "reward"), [(6, 1.0), (5, 0.0)])
async def test_the_reward_is_whether_the_counter_ends_where_it_must(counter, make_task, count, reward):
    score = await counter.verify(make_task(expected_count=6), CounterState(count=count))
    assert score.reward == reward


async def test_the_scripted_model_makes_all_calls_in_one_turn(counter, make_task, play):
    task = make_task("add 1 then add -2 then get the count", initial_count=3, expected_count=2)
    played = await play(counter, task)
    calls = played.messages[1].tool_calls
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_1_0", "increment_counter", '{"count": 1}'),
        ("call_1_1", "increment_counter", '{"count": -2}'),
        ("call_1_2", "get_counter_value", "{}"),
    ]
    assert played.messages[-1].text == 'Done: {"count": 2}'
    assert played.reward == 1.0


async def test_the_scripted_model_solves_every_row(counter, tasks, play):
    for task in tasks("counter"):
        assert (await play(counter, task)).reward == 1.0


@pytest.mark.conformance
async def test_nemo_gyms_recorded_results_and_rewards_are_ours(counter, recorded):
    for rollout in recorded("example_session_state_mgmt"):
        opening = await counter.open(rollout.task)
        results = []
        for message in rollout.messages:
            for call in message.tool_calls:
                arguments = Counter.tools[call.function.name].arguments(call.function.arguments)
                results.append(await getattr(counter, call.function.name)(state=opening.state, **arguments))
        assert results == rollout.results
        score = await counter.verify(rollout.task, opening.state)
        assert score.reward == rollout.reward


def test_the_data_is_what_its_script_makes(tasks):
    assert [{"id": task.id, **task.data} for task in tasks("counter")] == [
        {key: value for key, value in row.items() if key != "messages"} for row in rows()
    ]
