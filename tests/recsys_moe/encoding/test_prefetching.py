from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from recsys_moe.encoding.prefetching import prefetched

FAR = 1_000_000


class Counted:
    """Numbers, and how many of them were made."""

    def __init__(self, until: int, error: BaseException | None = None) -> None:
        self.until, self.error, self.made = until, error, 0

    def __iter__(self) -> Iterator[int]:
        while self.made < self.until:
            self.made += 1
            yield self.made
        if self.error is not None:
            raise self.error


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_values_come_in_order_and_the_thread_ends() -> None:
    assert list(prefetched(Counted(100))) == list(range(1, 101))
    assert not threads()


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()], ids=repr)
def test_an_error_comes_after_the_values_before_it(error: BaseException) -> None:
    values = prefetched(Counted(3, error))
    assert [next(values) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(type(error)) as raised:
        next(values)
    assert raised.value is error
    assert not threads()


def test_no_more_is_made_than_a_few_ahead() -> None:
    numbers = Counted(FAR)
    values = prefetched(numbers)
    assert next(values) == 1
    values.close()
    assert numbers.made <= 6
    assert not threads()


def test_a_consumer_that_fails_leaves_no_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        sum(value / 0 for value in prefetched(Counted(FAR)))
    assert not threads()


def test_nothing_is_made_before_it_is_asked_for() -> None:
    numbers = Counted(FAR)
    values = prefetched(numbers)
    assert not threads()
    values.close()
    assert numbers.made == 0
