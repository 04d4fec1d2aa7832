import pytest
from gymq_environments.guess_number.data.make import rows
from gymq_environments.guess_number.environment import GuessNumber, GuessState

from gymq.wire.message import Conversation, Message, encode_message


@pytest.fixture
def game():
    return GuessNumber()


def said(text):
    return Conversation([encode_message(Message(role="assistant", content=text))])


async def test_a_game_begins_with_the_rows_secret(game, make_task):
    opening = await game.open(make_task(secret=7, low=1, high=10, max_guesses=4))
    assert opening.state == GuessState(secret=7, low=1, high=10, limit=4)


@pytest.mark.parametrize(
    ("guess", "answer", "done"),
    [
        ("3", "higher", False),
        ("Not 7 then. I say 9", "lower", False),
        ("It must be 7.", "correct", True),
        ("Hmm...7", "correct", True),
        ("between 1 and 10, so 10-3", "higher", False),
        ("-7", "higher", False),
        ("I give up", "Please guess a whole number from 1 to 10.", False),
        ("7.5", "Please guess a whole number from 1 to 10.", False),
        ("9" * 5000, "Please guess a whole number from 1 to 10.", False),
    ],
)
async def test_the_environment_answers_a_guess(game, guess, answer, done):
    state = GuessState(secret=7, low=1, high=10, limit=4)
    response = await game.respond(said(guess), state)
    assert [(message.role, message.content) for message in response.messages] == [("user", answer)]
    assert response.done is done
    assert state.guesses == 1


async def test_the_game_ends_with_the_last_guess_even_if_it_was_no_number(game):
    state = GuessState(secret=7, low=1, high=10, limit=2)
    assert not (await game.respond(said("5"), state)).done
    assert (await game.respond(said("hm"), state)).done
    assert (await game.verify(state)).reward == 0.0


@pytest.mark.parametrize(("guesses", "reward"), [(1, 1.0), (2, 0.75), (4, 0.25)])
async def test_each_guess_after_the_first_costs_its_share(game, guesses, reward):
    score = await game.verify(GuessState(secret=7, low=1, high=10, limit=4, guesses=guesses, found=True))
    assert score.reward == reward
    assert sum(score.rewards.values()) == reward
    assert score.metrics == {"guesses": guesses}


async def test_a_secret_not_found_gives_nothing(game):
    score = await game.verify(GuessState(secret=7, low=1, high=10, limit=4, guesses=4))
    assert score.reward == 0.0
    assert score.rewards == {"found": 0.0, "guesses": 0.0}


async def test_the_scripted_model_halves_the_range(game, make_task, play):
    played = await play(game, make_task(secret=7, low=1, high=10, max_guesses=4))
    assert [message.text for message in played.messages][1:] == [
        "My guess is 5.",
        "higher",
        "My guess is 8.",
        "lower",
        "My guess is 6.",
        "higher",
        "My guess is 7.",
        "correct",
    ]
    assert played.reward == 0.25


async def test_the_scripted_model_finds_every_secret_that_halving_can_find(game, tasks, play):
    missed = 0
    for task in tasks("guess_number"):
        played = await play(game, task)
        if played.reward == 0.0:
            missed += 1
            assert (task["high"] - task["low"] + 1, task["max_guesses"]) == (100, 5)
    assert 0 < missed < 25


def test_the_data_is_what_its_script_makes(tasks):
    assert [{"id": task.id, **task.data} for task in tasks("guess_number")] == [
        {key: value for key, value in row.items() if key != "messages"} for row in rows()
    ]
