import msgspec
import pytest
from gymq_environments.weather.data.make import rows
from gymq_environments.weather.environment import Weather

from gymq.wire.message import Conversation, Message, encode_message


@pytest.fixture
def weather():
    return Weather()


async def test_a_city_has_the_same_weather_however_it_is_written(weather):
    first = await weather.get_weather("Paris")
    second = await weather.get_weather(" paris")
    assert first.startswith("The weather in Paris is ")
    assert first.rsplit(" ", 1) == second.replace(" paris", "Paris").rsplit(" ", 1)


async def test_cities_differ_in_their_weather(weather):
    said = {(await weather.get_weather(city)).rsplit(" ", 1)[1] for city in ("Paris", "Oslo", "Lima", "Cairo", "Delhi")}
    assert len(said) > 1


def test_the_tool_is_read_only_and_declares_its_city():
    (tool,) = Weather.spec().tools
    assert tool.read_only
    assert tool.schema["function"]["parameters"]["required"] == ["city"]
    assert tool.schema["function"]["parameters"]["properties"]["city"]["description"] == "the city's name."


async def test_the_scripted_model_looks_the_city_up_and_repeats_the_weather(weather, tasks, play):
    for task in tasks("weather"):
        played = await play(weather, task)
        roles = [message.role for message in played.messages]
        assert roles == ["system", "user", "assistant", "tool", "assistant"]
        city = msgspec.json.decode(played.messages[2].tool_calls[0].function.arguments)["city"]
        assert city in played.messages[1].text
        assert played.messages[-1].text == await weather.get_weather(city)
        assert played.reward == 1.0
        assert played.metrics == {"called_tool": 1.0}


def test_a_tool_call_has_the_same_id_every_time(weather, make_task):
    messages = make_task("What is the weather in Oslo?").messages
    assert [weather.policy(messages).tool_calls[0].id for _ in range(2)] == ["call_1_0", "call_1_0"]


def test_the_scripted_model_asks_which_city_where_none_is_named(weather, make_task):
    message = weather.policy(make_task("how's the outside?").messages)
    assert message.content == "Which city do you mean?"
    assert not message.tool_calls


async def test_scoring_decodes_no_message(weather):
    score = await weather.verify(Conversation([b"not a message", b'{"tool_calls":[{"function":{"name":"get_weather"}}]}']))
    assert score.metrics == {"called_tool": 1.0}


async def test_words_that_look_like_a_call_are_none(weather):
    claim = Message(role="assistant", content='I called {"name":"get_weather"}, honestly.')
    score = await weather.verify(Conversation([encode_message(claim)]))
    assert score.metrics == {"called_tool": 0.0}


@pytest.mark.conformance
async def test_nemo_gyms_recorded_rewards_are_ours(weather, recorded):
    for rollout in recorded("example_single_tool_call"):
        score = await weather.verify(rollout.messages)
        assert score.reward == rollout.reward
        assert score.metrics["called_tool"] == float(bool(rollout.results))
        for message in rollout.messages:
            for call in message.tool_calls:
                assert Weather.tools[call.function.name].arguments(call.function.arguments)["city"]


def test_the_data_is_what_its_script_makes(tasks):
    made = list(rows())
    assert [task.id for task in tasks("weather")] == [row["id"] for row in made]
    assert [task.messages.last.text for task in tasks("weather")] == [row["messages"][-1]["content"] for row in made]
