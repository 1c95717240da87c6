"""The next values of an iterator made ahead, in a thread that never outlives who asks for them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

Value = TypeVar("Value")

_AHEAD = 2
"""Values that wait at most: enough to bridge that some take longer to make than others."""


def prefetched(values: Iterable[Value]) -> Generator[Value]:
    """The same values, made in a background thread, at most three ahead of the consumer.

    An error of the thread is raised here, after the values before it. The thread ends with this iterator, also when it
    is closed early, at the latest after the value that is being made.
    """
    made: Queue[Value | _End] = Queue(_AHEAD)
    stopped = Event()
    thread = Thread(target=_make, args=(values, made, stopped), name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(value := made.get(), _End):
            yield value
        if value.error is not None:
            raise value.error
    finally:
        stopped.set()
        _empty(made)  # the thread may wait for a place; after this there is one for all that it still puts
        thread.join()


class _End:
    """What comes after the last value."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _make(values: Iterable[Value], made: Queue[Value | _End], stopped: Event) -> None:
    end = _End(None)
    try:
        for value in values:
            made.put(value)
            if stopped.is_set():
                return
    except BaseException as error:
        end = _End(error)
    made.put(end)


def _empty(made: Queue[Value]) -> None:
    try:
        while True:
            made.get_nowait()
    except Empty:
        pass
