"""URLs of servers, which come from the environment only, and messages without the passwords in them."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from pipelines.config import PostgresExport, RedisExport
from recsys_moe.errors import UserError


def url_of(target: RedisExport | PostgresExport, *schemes: str) -> str:
    """The URL that the target's environment variable holds.

    Raises:
        UserError: there is none, or it is no URL of such a server.
    """
    url = os.environ.get(target.connection)
    if not url:
        raise UserError(f"{title(target)}: the environment has no variable {target.connection} with the server's URL")
    try:
        parts = urlsplit(url)
        good = parts.scheme in schemes and parts.port != 0  # a port that is no number raises
        # The driver of PostgreSQL would take what follows the first @ for the host, and say it.
        good = good and not (isinstance(target, PostgresExport) and parts.netloc.count("@") > 1)
    except ValueError:
        good = False
    if not good:
        form = f"{schemes[0]}://user:password@host (an @ in the password is written %40)"
        raise UserError(f"{title(target)}: ${target.connection} is no URL such as {form}")
    return url


def title(target: RedisExport | PostgresExport) -> str:
    """What messages call a target."""
    return f"exports.{target.name}"


def in_a_line(error: BaseException | str, url: str) -> str:
    """What went wrong, without the URL's password."""
    text, parts = " ".join(str(error).split()) or type(error).__name__, urlsplit(url)
    options = (option.partition("=") for option in parts.query.split("&"))
    for password in (parts.password, *(value for name, _, value in options if name.endswith("password"))):
        for secret in (password, unquote(password)) if password else ():
            text = text.replace(secret, "***")
    return text
