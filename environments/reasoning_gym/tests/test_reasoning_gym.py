import sys

import pytest
from gymq_environments.reasoning_gym.environment import ReasoningGym, answers, scorer

from gymq.errors import UsageError
from gymq.wire.message import Conversation, Message, encode_message


@pytest.fixture
def gym():
    pytest.importorskip("reasoning_gym")
    return ReasoningGym()


@pytest.fixture
def grade(gym):
    def grade(task, text):
        return gym.verify(task, Conversation([*task.encoded, encode_message(Message(role="assistant", content=text))]))

    return grade


@pytest.fixture
def gcd(make_task):
    metadata = {"source_dataset": "gcd", "numbers": [12, 18], "result": 6}
    return make_task("GCD?", entry={"question": "GCD?", "answer": "6", "metadata": metadata})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<answer>3</answer>, no: <answer>\n4 </answer>", (["4"], True)),
        ("<answer>1 2\n3 4</answer>", (["1 2\n3 4"], True)),
        ("It is\n\n 4\n", (["It is\n\n 4", "4"], False)),
        ("4", (["4", "4"], False)),
        ("", (["", ""], False)),
    ],
)
def test_the_answer_is_in_the_last_tags_or_in_the_text(text, found):
    assert answers(text) == found


def test_an_answer_is_scored_from_the_row_alone(grade, gcd):
    assert grade(gcd, "<answer>6</answer>").reward == 1.0
    assert grade(gcd, "<answer>5</answer>").reward < 1.0


def test_without_tags_the_last_line_counts(grade, gcd):
    score = grade(gcd, "12 = 6 * 2 and 18 = 6 * 3, so it is\n6")
    assert score.reward == 1.0
    assert score.metrics == {"tagged": 0.0}


def test_without_an_answer_there_is_no_reward_to_give(gym, gcd):
    assert gym.verify(gcd, gcd.messages).reward == 0.0


def test_nemo_gyms_rows_hold_the_entry_in_their_own_fields(grade, make_task):
    metadata = {"source_dataset": "chain_sum", "source_index": 0}
    task = make_task("2 + 2 =", question="2 + 2 =", answer="4", metadata=metadata)
    assert grade(task, "<answer>4</answer>").reward == 1.0


def test_text_that_a_scorer_raises_at_is_a_wrong_answer(grade, make_task):
    metadata = {"source_dataset": "prime_factorization", "number": 6, "factors": [2, 3]}
    task = make_task("6", entry={"question": "6", "answer": "2 × 3", "metadata": metadata})  # noqa: RUF001
    with pytest.raises(ValueError):
        scorer("prime_factorization")("I do not know", task["entry"])
    assert grade(task, "<answer>I do not know</answer>").reward == 0.0
    assert grade(task, "<answer>2 × 3</answer>").reward == 1.0  # noqa: RUF001


def test_a_row_that_its_scorer_raises_at_is_not_scored(grade, make_task):
    metadata = {"source_dataset": "prime_factorization"}
    task = make_task("6", entry={"question": "6", "answer": "two and three", "metadata": metadata})
    with pytest.raises(ValueError):
        grade(task, "<answer>2</answer>")


def test_scoring_is_isolated_as_scorers_may_evaluate_what_the_model_wrote():
    assert ReasoningGym.spec().verify.isolated


def test_a_missing_package_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    scorer.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'gymq\[data\]'"):
        scorer("gcd")


async def test_the_scripted_model_is_right_in_about_two_rows_of_three(gym, tasks, play):
    rewards = [(await play(gym, task)).reward for task in tasks("reasoning_gym")]
    right = sum(reward == 1.0 for reward in rewards)
    assert 0.55 < right / len(rewards) < 0.78


def test_every_row_gives_its_own_answer_the_full_reward(grade, tasks):
    rows = tasks("reasoning_gym")
    assert len({task["dataset"] for task in rows}) >= 6
    for task in rows:
        assert task.messages.last.text == task["entry"]["question"]
        assert grade(task, f"<answer>{task['entry']['answer']}</answer>").reward == 1.0
