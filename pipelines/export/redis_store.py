"""A day's lists in Redis: a key for each, and one key that says which day's are to be read.

    tiny:current                                  "2026-01-05.3f2a81c09d4e"        the generation to read
    tiny:2026-01-05.3f2a81c09d4e:home:u17         {"item_id":["i4","i1"],"score":[0.71,0.55]}
    tiny:state:2026-01-05.3f2a81c09d4e            a hash: how many rows are in, when all of it expires

A load writes keys of a generation that nobody reads, and then changes `current`: a reader finds the old day or the new
one. The generation before stays for whoever has just asked for it, until the next load begins.

Who loads holds the key `loading`. A later process takes it, goes on from the rows that are in, and the one before ends
as it next looks at it; so a load that was killed needs no waiting.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import redis
from duckdb import DuckDBPyConnection
from redis.client import Pipeline
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError

from pipelines import sql
from pipelines.config import RedisExport
from pipelines.errors import TryAgainError
from pipelines.export.connections import in_a_line, title, url_of
from pipelines.export.json_lines import as_json, joined
from pipelines.export.lists import DayLists
from recsys_moe.errors import UserError

_SECONDS = 30
_KEYS_AT_ONCE = 5_000


def load(target: RedisExport, prefix: str, day: DayLists) -> str:
    """Bring the day in, from where a load that was interrupted has stopped. Returns what was done.

    Raises:
        TryAgainError: the server cannot be reached, or another process has begun to load.
        UserError: the server refuses, or scores have no such column.
    """
    if lacking := [name for name in target.columns if name not in day.schema.names]:
        raise UserError(f"{title(target)}.columns: scores have no column {lacking[0]!r}; there is {day.schema.names}")
    with _connected(target) as server, sql.connect() as database:
        store = _Generation(server, database, target, prefix, day)
        if state := store.served():
            return state
        store.begin()
        for part in day.parts(target.name, after=store.done):
            store.bring_in(part)
        store.serve()
    return "loaded"


class _Generation:
    """The keys of one day in one shape."""

    def __init__(
        self, server: redis.Redis, database: DuckDBPyConnection, target: RedisExport, prefix: str, day: DayLists
    ) -> None:
        self._server, self._database, self._target, self._prefix, self._day = server, database, target, prefix, day
        self._name = day.generation(*target.columns)
        self._token, self.done, self._expires = uuid.uuid4().hex, 0, 0

    def served(self) -> str | None:
        """Why there is nothing to load, if so."""
        current = self._current()
        if current == self._name:
            return "there already"
        return "a newer day is there" if current and current.partition(".")[0] > str(self._day.ds) else None

    def begin(self) -> None:
        """Become the one who loads: see what is in, and remove what nobody reads any more."""
        self._server.set(self._key("loading"), self._token)
        known: Any = self._server.hgetall(self._state)
        now, lifetime = int(time.time()), self._target.expire_days * 86_400
        # A load that began so long ago that its keys are past half their time is begun anew.
        if known and int(known["expires"]) > now + lifetime / 2:
            self.done, self._expires = int(known["rows"]), int(known["expires"])
        else:
            self._expires = now + lifetime
            fresh = {"rows": 0, "expires": self._expires, "model_version": self._day.model_version}
            self._if_still_ours(lambda pipe: self._set_state(pipe, fresh))
        generations: Any = self._server.smembers(self._key("generations"))
        for old in sorted(generations - {self._name, self._current()}):
            self._remove(old)

    def bring_in(self, part: pa.Table) -> None:
        """Write the lists of a part, and then that they are in."""
        lists = _lists(self._database, part, self._target.columns, self._key(self._name))
        _send(self._server, _commands(lists, self._expires), len(lists))
        self.done += len(part)
        self._if_still_ours(lambda pipe: self._set_state(pipe, {"rows": self.done}))

    def serve(self) -> None:
        """From now on readers find this generation."""

        def change(pipe: Pipeline) -> None:
            pipe.set(self._key("current"), self._name, exat=self._expires)
            pipe.delete(self._key("loading"))

        self._if_still_ours(change)

    def _key(self, *parts: str) -> str:
        return ":".join([self._prefix, *parts])

    @property
    def _state(self) -> str:
        return self._key("state", self._name)

    def _current(self) -> str | None:
        found = self._server.get(self._key("current"))
        return str(found) if found else None

    def _set_state(self, pipe: Pipeline, values: Mapping[Any, Any]) -> None:
        pipe.hset(self._state, mapping=values)
        pipe.expireat(self._state, self._expires)
        pipe.sadd(self._key("generations"), self._name)

    def _if_still_ours(self, change: Callable[[Pipeline], None]) -> None:
        """Change keys in one transaction, unless another process has begun to load."""

        def work(pipe: Pipeline) -> None:
            if pipe.get(self._key("loading")) != self._token:
                raise TryAgainError(f"{title(self._target)}: another process loads into {self._prefix}: now")
            pipe.multi()
            change(pipe)

        self._server.transaction(work, self._key("loading"))

    def _remove(self, name: str) -> None:
        """What is known of a generation first: whoever loads it begins anew, or ends."""
        self._server.unlink(self._key("state", name))
        keys = self._server.scan_iter(match=self._key(name, "*"), count=_KEYS_AT_ONCE)
        while some := list(islice(keys, _KEYS_AT_ONCE)):
            self._server.unlink(*some)
        self._server.srem(self._key("generations"), name)


def _send(server: redis.Redis, commands: memoryview, count: int) -> None:
    """Send commands at once, and see that each of them was done."""
    connection: Any = server.connection_pool.get_connection()
    try:
        connection.send_packed_command([commands])
        for _ in range(count):
            connection.read_response()
    except BaseException:
        connection.disconnect()  # answers that are still to come belong to nobody
        raise
    finally:
        server.connection_pool.release(connection)


def _lists(database: DuckDBPyConnection, part: pa.Table, columns: Iterable[str], prefix: str) -> pa.Table:
    """The part's lists: `key`, and `list` in JSON."""
    arrays = {name: f"list({as_json(part.schema.field(name))} ORDER BY rank)" for name in columns}
    fields = ", ".join(f"{sql.text(name)}: {array}" for name, array in arrays.items())
    key, text = f"{sql.text(prefix + ':')} || context || ':' || user_id", f"CAST(to_json({{{fields}}}) AS VARCHAR)"
    database.register("part", part)
    return sql.fetch(database, f"SELECT {key} AS key, {text} AS list FROM part GROUP BY context, user_id")


def _commands(lists: pa.Table, expires: int) -> memoryview:
    """`SET key list EXAT expires` for each list, as the bytes that go to the server.

    https://redis.io/docs/latest/develop/reference/protocol-spec/: an array of strings, each with its length before it.
    """
    key, value = (lists.column(name).combine_chunks() for name in ("key", "list"))
    key_size, size = (pc.cast(pc.binary_length(text), pa.string()) for text in (key, value))
    start, end = "*5\r\n$3\r\nSET\r\n$", f"\r\n$4\r\nEXAT\r\n${len(str(expires))}\r\n{expires}\r\n"
    return joined(pc.binary_join_element_wise(start, key_size, "\r\n", key, "\r\n$", size, "\r\n", value, end, ""))


@contextmanager
def _connected(target: RedisExport) -> Iterator[redis.Redis]:
    """The server, with all complaints as one line that has no password in it."""
    url = url_of(target, "redis", "rediss", "unix")
    try:
        limits = {"socket_timeout": _SECONDS, "socket_connect_timeout": _SECONDS}
        with redis.Redis.from_url(url, decode_responses=True, **limits) as server:
            yield server
    except (AuthenticationError, AuthorizationError) as error:
        raise UserError(f"{title(target)}: {in_a_line(error, url)}") from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise TryAgainError(f"{title(target)}: {in_a_line(error, url)}") from None
    except RedisError as error:
        raise UserError(f"{title(target)}: {in_a_line(error, url)}") from None
