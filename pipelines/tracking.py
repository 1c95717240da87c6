"""MLflow's address: how messages name it, without the login that it may hold, and who may make its database."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit


def without_login(uri: str, text: str | None = None) -> str:
    """The address, or a text that may quote it, with *** in place of a user and password."""
    text, netloc = uri if text is None else text, urlsplit(uri).netloc
    login = netloc.rpartition("@")[0]
    if not login:
        return text
    password = login.partition(":")[2]
    for secret in filter(None, (login, password, unquote(password))):
        text = text.replace(secret, "***")
    return text


def in_a_line(error: Exception, uri: str) -> str:
    """The first line of what the server, or its client, complains of."""
    return without_login(uri, (str(error).splitlines() or [type(error).__name__])[0])


@contextmanager
def alone_at(uri: str) -> Iterator[None]:
    """Wait until nobody else opens a local store: of two processes that make its database at once, mlflow ends one or
    both with an error."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
