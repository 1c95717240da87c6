"""How messages name the MLflow server: without the login that its address may hold."""

from __future__ import annotations

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
