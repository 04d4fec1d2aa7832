import pytest

from gymq.errors import UsageError
from gymq.local.gpus import shares


def test_each_device_gets_a_worker():
    assert shares("0-3,6", {}) == ["0", "1", "2", "3", "6"]
    assert shares("5", {"gpu": None}) == ["5"]


def test_a_model_that_is_split_gets_as_many_as_it_is_split_over():
    assert shares("0-3", {"engine": '{"tensor_parallel_size":"2"}'}) == ["0,1", "2,3"]
    assert shares("0-3", {"engine": {"tensor_parallel_size": 4}}) == ["0,1,2,3"]


@pytest.mark.parametrize(
    ("gpus", "options", "says"),
    [
        ("", {}, "write numbers and ranges"),
        ("3-1", {}, "write numbers and ranges"),
        ("none", {}, "write numbers and ranges"),
        ("0,0-1", {}, "twice"),
        ("0-1", {"gpu": "0"}, "give one of them"),
        ("0-2", {"engine": {"tensor_parallel_size": 2}}, "does not divide"),
        ("0-2", {"engine": {"tensor_parallel_size": "x"}}, "does not divide"),
    ],
)
def test_nonsense_is_told_in_one_line(gpus, options, says):
    with pytest.raises(UsageError, match=says):
        shares(gpus, options)
