"""The measured side: a process that trains when it is told to, and says how many seconds that took.

A request is a line with the name of a measure, the answer a line of JSON, `{"seconds": 1.25}`: seconds of the
processor, of the whole process. Before the first request the process says what it is; where requests end it may say
something last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

Measure = Callable[[], object]
"""Trains for a pass over the data."""


class Channel:
    """JSON lines from and to the process that started this one; what libraries print goes to stderr."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def requests(self) -> Iterator[str]:
        """Names of measures, until the other side is done."""
        return map(str.strip, sys.stdin)

    def say(self, **values: object) -> None:
        """Answer."""
        print(json.dumps(values), file=self._out, flush=True)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Answer with the processor's seconds of what runs inside."""
        start = time.process_time()
        yield
        self.say(seconds=time.process_time() - start)

    def serve(self, measures: Mapping[str, Callable[[], Measure]]) -> None:
        """Measure what is asked; what a measure needs is made when it is first asked for, outside of the time."""
        made: dict[str, Measure] = {}
        for request in self.requests():
            made[request] = made.get(request) or measures[request]()
            with self.timed():
                made[request]()
