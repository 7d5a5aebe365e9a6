"""How often, how soon and after what a call is made again, and what a connection can afford."""

from typing import Any

import pytest

from shmrpc import Code, Retry
from shmrpc.retry import JITTER, Budget


def test_the_defaults_are_three_attempts_where_the_server_was_unavailable() -> None:
    retry = Retry()
    assert (retry.attempts, retry.codes) == (3, {Code.UNAVAILABLE})


def test_codes_may_be_any_collection() -> None:
    assert Retry(codes=[Code.ABORTED, Code.ABORTED]).codes == frozenset({Code.ABORTED})
    assert hash(Retry(codes=[Code.ABORTED])) == hash(Retry(codes={Code.ABORTED}))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"attempts": 0}, "attempts is a whole number of 1 or more, not 0"),
        ({"attempts": 2.0}, "attempts is a whole number of 1 or more, not 2.0"),
        ({"backoff": -1}, "backoff is a number of 0.0 or more, not -1"),
        ({"factor": 0.5}, "factor is a number of 1.0 or more, not 0.5"),
        ({"max_backoff": float("nan")}, "max_backoff is a number of 0.0 or more, not nan"),
        ({"budget": -0.1}, "budget is a number of 0.0 or more, not -0.1"),
        ({"max_tokens": 0}, "max_tokens is a positive number, not 0"),
        ({"codes": {Code.OK}}, "codes are members of shmrpc.Code other than OK, not <Code.OK: 0>"),
        ({"codes": {14}}, "codes are members of shmrpc.Code other than OK, not 14"),
        ({"codes": "UNAVAILABLE"}, "codes are members of shmrpc.Code other than OK, not '"),
    ],
)
def test_a_value_that_cannot_work_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Retry(**values)


def test_pauses_grow_up_to_the_longest_and_vary_by_a_fifth() -> None:
    retry = Retry(backoff=0.1, factor=3.0, max_backoff=0.5)
    for repetition, seconds in ((1, 0.1), (2, 0.3), (3, 0.5), (4, 0.5), (10_000, 0.5)):
        pauses = [retry.pause(repetition) for _ in range(100)]
        assert min(pauses) >= seconds * (1 - JITTER)
        assert max(pauses) <= seconds * (1 + JITTER)
        assert max(pauses) - min(pauses) > seconds * JITTER / 2


def test_failures_take_tokens_and_at_half_nothing_is_repeated() -> None:
    """The example of A6: ten tokens, of which the fifth failure leaves five."""
    retry, budget = Retry(max_tokens=10), Budget()
    assert [budget.fail(retry) for _ in range(6)] == [True] * 4 + [False] * 2
    assert repr(budget) == "<Budget, 6 tokens missing>"


def test_successes_give_tokens_back_and_not_more_than_there_were() -> None:
    retry, budget = Retry(max_tokens=10, budget=0.7), Budget()
    for _ in range(5):
        budget.fail(retry)
    for _ in range(2):
        budget.succeed(retry)
    assert budget.missing == pytest.approx(3.6)
    assert budget.fail(retry)
    for _ in range(100):
        budget.succeed(retry)
    assert budget.missing == 0


def test_a_bucket_is_not_emptier_than_empty() -> None:
    retry, budget = Retry(max_tokens=10), Budget()
    for _ in range(100):
        budget.fail(retry)
    assert budget.missing == 10


def test_stubs_with_more_and_fewer_tokens_share_a_budget() -> None:
    rich, poor, budget = Retry(max_tokens=100), Retry(max_tokens=4), Budget()
    assert budget.fail(poor)
    assert [budget.fail(rich) for _ in range(9)] == [True] * 9
    assert not budget.fail(poor)
    assert budget.missing == 10  # what the rich one spent is not given back by the poor one's failure
    assert budget.fail(rich)


def test_every_value_is_given_by_name() -> None:
    with pytest.raises(TypeError):
        Retry(5)  # type: ignore[call-arg]
